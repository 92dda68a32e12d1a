"""Results and events: vLLM's shape, plus what a step is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

StepSource = Literal["draft", "target"]
FinishReason = Literal["stop", "length", "steps", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """Log-probability of one token under the model that wrote it, before temperature."""

    logprob: float
    rank: int | None  # 1 = most likely; None if not among those asked for
    decoded_token: str


@dataclass(frozen=True)
class RejectedStep:
    """A draft step that the policy turned down; the target wrote this step instead."""

    text: str
    token_ids: tuple[int, ...]
    reward: float  # NaN if the PRM gave none


@dataclass(frozen=True)
class Step:
    """A kept step."""

    text: str  # with its delimiter
    token_ids: tuple[int, ...]
    source: StepSource
    reward: float | None  # None if unscored: target steps, and modes without a PRM
    rejected: RejectedStep | None  # what the draft had written


@dataclass(frozen=True)
class CompletionOutput:
    """One sample. `text` leaves out stop strings and special tokens; `token_ids` has all ids."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None  # the stop token id or stop string; None for end-of-text
    steps: tuple[Step, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    error: str | None = None  # why, if finish_reason is "error"


@dataclass(frozen=True)
class RoleMetrics:
    """What one model did.

    Attributes:
        tokens_generated: tokens written and kept.
        tokens_discarded: tokens written and rejected, or lost with a request that failed.
        tokens_read: rows of its passes, prompts and tokens read again after a preemption included.
        passes: passes that served it.
        seconds: time of those passes, shared with the other requests in them.
    """

    tokens_generated: int = 0
    tokens_discarded: int = 0
    tokens_read: int = 0
    passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: RoleMetrics) -> RoleMetrics:
        return RoleMetrics(
            self.tokens_generated + other.tokens_generated,
            self.tokens_discarded + other.tokens_discarded,
            self.tokens_read + other.tokens_read,
            self.passes + other.passes,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Flops:
    """2 x parameters x tokens.

    Attributes:
        generated: draft tokens written (discarded ones too), the same tokens once more for the
            PRM that scored them, and target tokens written: the paper's accounting.
        all: every row any model read, prompts and catching up included.
    """

    generated: int = 0
    all: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.generated + other.generated, self.all + other.all)


@dataclass(frozen=True)
class Metrics:
    """Counts of one request (all its samples) or of the engine."""

    draft: RoleMetrics = field(default_factory=RoleMetrics)
    target: RoleMetrics = field(default_factory=RoleMetrics)
    prm: RoleMetrics = field(default_factory=RoleMetrics)
    flops: Flops = field(default_factory=Flops)
    steps_accepted: int = 0
    steps_rejected: int = 0
    nan_rewards: int = 0
    seconds: float = 0.0  # from arrival to the last token; of the engine: time in launches

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the scored draft steps that were kept; None if none was scored."""
        scored = self.steps_accepted + self.steps_rejected
        return self.steps_accepted / scored if scored else None

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            self.draft + other.draft,
            self.target + other.target,
            self.prm + other.prm,
            self.flops + other.flops,
            self.steps_accepted + other.steps_accepted,
            self.steps_rejected + other.steps_rejected,
            self.nan_rewards + other.nan_rewards,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class RequestOutput:
    """The result of one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    metrics: Metrics
    seed: int  # the one given, or the one drawn
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; NaN rewards become None."""
        values = _plain(asdict(self))
        values["metrics"]["acceptance_rate"] = self.metrics.acceptance_rate
        return dict(values)


@dataclass(frozen=True)
class StepEvent:
    """A decided step of a stream. Kept steps are final; the text of all kept ones is the result."""

    request_id: str
    index: int  # which of the n samples
    kind: Literal["kept", "rejected"]
    text: str  # of a kept step: what it adds to the output's text
    token_ids: tuple[int, ...]
    source: StepSource
    reward: float | None


@dataclass(frozen=True)
class FinishedEvent:
    """The last event of a stream."""

    request_id: str
    output: RequestOutput


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
