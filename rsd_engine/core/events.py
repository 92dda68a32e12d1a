"""Events of the core, in the order in which they happen: a decided step, the end of a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rsd_engine.core.failures import Failure
from rsd_engine.outputs import GuessCounts
from rsd_kernels.state.enums import Finish, GuessSource, RecordKind, Role


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token taken, and of the most likely ones."""

    logprob: float
    rank: int  # of the token taken; 1 = most likely
    top: dict[int, float]  # token id -> log-probability, most likely first


@dataclass(frozen=True)
class PromptRead:
    """The log-probabilities of a prompt, where a request asks for them."""

    key: int
    role: Role  # whose
    logprobs: tuple[TokenLogprobs, ...]  # of every token but the first


@dataclass(frozen=True)
class LostCandidate:
    """A candidate of a step that was not taken."""

    source: Role
    token_ids: tuple[int, ...]
    reward: float  # NaN if unscored
    score: float | None  # what it was drawn by, if that is not its reward


@dataclass(frozen=True)
class StepDecided:
    """A step was kept, rejected, or dropped because its request failed while writing it.

    A PART brings new tokens of a step that goes on; the event that ends it brings the rest.
    """

    key: int  # the request's key in the core
    kind: RecordKind
    source: Role
    reward: float  # NaN if unscored
    token_ids: tuple[int, ...]
    finish: Finish  # why the output ends with this step; NONE if it goes on
    logprobs: tuple[TokenLogprobs, ...] | None
    guesses: int = 0  # tokens of the step, parts before included, that were guessed
    candidates: tuple[LostCandidate, ...] = ()  # that lost against it, in the order of drafts


def nothing_written(key: int, writer: Role) -> StepDecided:
    """The output ends before the writer's step, for its context is full."""
    return StepDecided(key, RecordKind.DROPPED, writer, math.nan, (), Finish.LENGTH, None)


@dataclass(frozen=True)
class RoleCounters:
    """What one model did for one request."""

    tokens_read: int
    passes: int
    seconds: float
    cached_tokens: int = 0  # that were found, and not read


@dataclass(frozen=True)
class RequestDone:
    """A request left its slot, or the queue."""

    key: int
    finish: Finish | None  # None: aborted
    counters: dict[Role, RoleCounters]
    nan_rewards: int
    guesses: Mapping[GuessSource, GuessCounts] = field(default_factory=dict)  # none: left out
    given_up: tuple[LostCandidate, ...] = ()  # written for beams that the output has no part in
    failure: Failure | None = None  # where more is known than that the logits were not finite


Event = PromptRead | StepDecided | RequestDone
