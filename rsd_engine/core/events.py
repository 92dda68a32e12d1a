"""What the core tells: decided steps, and the end of a request, in order of happening."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_kernels.state.enums import Finish, RecordKind, Role


@dataclass(frozen=True)
class TokenLogprobs:
    """Logprobs of one position: of the token taken, and of the best ones."""

    logprob: float
    top: dict[int, float]  # token id -> logprob, best first


@dataclass(frozen=True)
class StepDecided:
    """A step was kept or rejected, or its request failed while writing it."""

    key: int  # the request's key in the core
    kind: RecordKind
    source: Role
    reward: float  # NaN if unscored
    token_ids: tuple[int, ...]
    finish: Finish  # why the output ends with this step, NONE if it goes on
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(frozen=True)
class RoleCounters:
    """What one model did for one request."""

    tokens_read: int
    passes: int
    seconds: float


@dataclass(frozen=True)
class RequestDone:
    """A request left its slot, or the queue."""

    key: int
    finish: Finish | None  # None: aborted
    counters: dict[Role, RoleCounters]
    nan_rewards: int


Event = StepDecided | RequestDone
