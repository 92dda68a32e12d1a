"""Results and events of the engine: as in vLLM, with the steps of an output added."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

StepSource = Literal["draft", "target"]
StepKind = Literal["kept", "rejected"]
FinishReason = Literal["stop", "length", "steps", "abort", "error"]
ErrorKind = Literal["logits", "admission", "op", "bridge", "result", "remote"]

T = TypeVar("T", bound="DataclassInstance")


class EngineDeadError(RuntimeError):
    """The GPU failed, and with it every request: no call on this engine works any more.

    The error of the GPU is its cause. A new engine needs a new process.
    """


@dataclass(frozen=True)
class Logprob:
    """Log-probability of a token under the model that wrote it, before temperature."""

    logprob: float
    rank: int  # 1 = most likely
    decoded_token: str  # U+FFFD where it is part of a character
    bytes: tuple[int, ...]  # of the text that the token adds; those of a special token are none


@dataclass(frozen=True)
class RejectedStep:
    """A draft step that the policy rejected and the target rewrote."""

    text: str
    token_ids: tuple[int, ...]
    reward: float  # NaN if the PRM gave none


@dataclass(frozen=True)
class Candidate:
    """A candidate of a step that another one was taken in place of."""

    text: str
    token_ids: tuple[int, ...]
    source: StepSource
    reward: float  # NaN if the PRM gave none
    score: float | None = None  # the tilted one of GSI; None where it was chosen by reward


@dataclass(frozen=True)
class Step:
    """A kept step."""

    text: str  # with its delimiter; the texts of all steps add up to the output's
    token_ids: tuple[int, ...]  # of the vocabulary of the model that wrote it
    source: StepSource  # that model
    reward: float | None  # in [0, 1]; None if unscored: the target's rewrite, or without a PRM
    rejected: RejectedStep | None  # the draft's step in whose place it stands
    guessed: int = 0  # of its tokens: guesses that the target verified
    candidates: tuple[Candidate, ...] = ()  # that lost against it, or against `rejected`


@dataclass(frozen=True)
class CompletionOutput:
    """One sample.

    Attributes:
        index: number of the sample, from 0.
        text: the output; without the stop string or stop token that ended it, and without special
            tokens, unless the request wants them.
        token_ids: all ids of the output, those left out of `text` included; step by step those of
            the model that wrote it, where draft and target have different tokenizers.
        finish_reason: "stop" at a stop token or stop string, "length" at `max_tokens` or the end of
            a context, "steps" at `max_steps`, "abort", or "error".
        stop_reason: the stop token id or stop string; "prm_context" if the output ended for lack of
            room in the PRM's context; None otherwise, as at end-of-text.
        steps: the kept steps, in order.
        cumulative_logprob: sum over the output's tokens; None unless `logprobs` was asked for.
        logprobs: per token, id -> log-probability; None unless asked for.
        error: what went wrong, in one line, if `finish_reason` is "error".
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None
    steps: tuple[Step, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class RoleMetrics:
    """What one model did.

    Attributes:
        tokens_generated: tokens written and kept.
        tokens_discarded: tokens written and not kept: rejected, those of candidates that were not
            taken, or dropped when a request failed.
        tokens_read: rows of its passes: prompts, and what it read again after a preemption, too.
        cached_tokens: tokens of prompts that it found in the prefix cache and had not to read.
        passes: passes that the request was part of.
        seconds: its share of the time of these passes: that of a pass is divided evenly among
            the slots in it, so that the seconds of all requests add up.
    """

    tokens_generated: int = 0
    tokens_discarded: int = 0
    tokens_read: int = 0
    cached_tokens: int = 0
    passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: RoleMetrics) -> RoleMetrics:
        return _sum(self, other)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, as 2 x parameters x tokens of each model.

    Attributes:
        generated: for tokens written, discarded ones too, and for those of scored steps once more
            by the PRM: the paper's accounting. With GSI also once by the target, which weighs the
            draft's candidates.
        all: for every row that a model read, prompts and catching up included.
    """

    generated: int = 0
    all: int = 0

    def __add__(self, other: Flops) -> Flops:
        return _sum(self, other)


@dataclass(frozen=True)
class Endings:
    """Outputs by their `finish_reason`."""

    stop: int = 0
    length: int = 0
    steps: int = 0
    abort: int = 0
    error: int = 0

    def __add__(self, other: Endings) -> Endings:
        return _sum(self, other)


@dataclass(frozen=True)
class Errors:
    """Outputs that ended with an error, by its kind.

    Attributes:
        logits: they were not finite, or no token was left to sample.
        admission: putting the request into its slot failed, or reading its prompt's logprobs.
        op: an op of the loop raised an error, such as MemoryError, and again for it alone.
        bridge: bringing a step to another tokenizer failed.
        result: turning tokens into text, steps and results failed.
        remote: the server of a target or a PRM failed, or did not answer in time.
    """

    logits: int = 0
    admission: int = 0
    op: int = 0
    bridge: int = 0
    result: int = 0
    remote: int = 0

    def __add__(self, other: Errors) -> Errors:
        return _sum(self, other)


@dataclass(frozen=True)
class GuessCounts:
    """Guesses at what the target would write, from one source.

    Attributes:
        made: guesses that the target read.
        kept: those that it would have written itself, and that became text.
    """

    made: int = 0
    kept: int = 0

    def __add__(self, other: GuessCounts) -> GuessCounts:
        return _sum(self, other)


@dataclass(frozen=True)
class Guesses:
    """Guesses by who made them: the draft, a rejected step, or the context itself."""

    draft: GuessCounts = field(default_factory=GuessCounts)
    rejected: GuessCounts = field(default_factory=GuessCounts)
    ngram: GuessCounts = field(default_factory=GuessCounts)

    @property
    def made(self) -> int:
        """Of all sources."""
        return self.draft.made + self.rejected.made + self.ngram.made

    @property
    def kept(self) -> int:
        """Of all sources."""
        return self.draft.kept + self.rejected.kept + self.ngram.kept

    def __add__(self, other: Guesses) -> Guesses:
        return _sum(self, other)


@dataclass(frozen=True)
class CandidateCounts:
    """Candidates of steps, where a request asks for several.

    Attributes:
        made: that were written, by the draft or the target.
        taken: those among them that another one was not taken in place of.
        tokens_discarded: of the others.
    """

    made: int = 0
    taken: int = 0
    tokens_discarded: int = 0

    @property
    def lost(self) -> int:
        """Those that were not taken."""
        return self.made - self.taken

    def __add__(self, other: CandidateCounts) -> CandidateCounts:
        return _sum(self, other)


@dataclass(frozen=True)
class Metrics:
    """Counts of one request, all its samples together, or of the engine."""

    draft: RoleMetrics = field(default_factory=RoleMetrics)
    target: RoleMetrics = field(default_factory=RoleMetrics)
    prm: RoleMetrics = field(default_factory=RoleMetrics)
    flops: Flops = field(default_factory=Flops)
    steps_accepted: int = 0
    steps_rejected: int = 0
    nan_rewards: int = 0
    guesses: Guesses = field(default_factory=Guesses)
    candidates: CandidateCounts = field(default_factory=CandidateCounts)
    endings: Endings = field(default_factory=Endings)
    errors: Errors = field(default_factory=Errors)
    seconds: float = 0.0  # from arrival to the last token; of the engine: time spent in launches

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the draft's steps that the policy kept; None if it decided on none."""
        scored = self.steps_accepted + self.steps_rejected
        return self.steps_accepted / scored if scored else None

    def __add__(self, other: Metrics) -> Metrics:
        return _sum(self, other)


@dataclass(frozen=True)
class RequestOutput:
    """The result of one prompt."""

    request_id: str
    prompt: str | None  # the target's, where draft and target read it differently; so are the ids
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]  # one per sample
    metrics: Metrics
    seed: int  # the given one, or the one drawn
    finished: bool = True
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None  # None for the first token
    # of the prompt's tokens: those that the target, or a draft alone, found in the prefix cache
    num_cached_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; NaN rewards become None."""
        values = _plain(asdict(self))
        values["metrics"]["acceptance_rate"] = self.metrics.acceptance_rate
        return dict(values)


@dataclass(frozen=True)
class ScoredStep:
    """A given step and its reward."""

    text: str  # as it was given
    reward: float  # NaN if the PRM gave none


@dataclass(frozen=True)
class ScoredSolution:
    """The rewards of one solution's steps."""

    question: str
    steps: tuple[ScoredStep, ...]
    tokens_read: int  # by the PRM

    @property
    def rewards(self) -> list[float]:
        """Of each step, in order."""
        return [step.reward for step in self.steps]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; NaN rewards become None."""
        return dict(_plain(asdict(self)))


@dataclass(frozen=True)
class StepEvent:
    """A decided step, in a stream. Kept steps are final: their texts add up to the output's.

    Where no PRM scores steps, each token is final at once, and an event is one or a few of them.
    """

    request_id: str
    index: int  # which of the n samples
    kind: StepKind
    text: str  # of a kept step: what it adds to the output's text
    token_ids: tuple[int, ...]
    source: StepSource
    reward: float | None
    logprobs: tuple[dict[int, Logprob], ...] | None = None  # as in `CompletionOutput`
    candidates: tuple[Candidate, ...] = ()  # of a kept step: as in `Step`


@dataclass(frozen=True)
class FinishedEvent:
    """The last event of a stream."""

    request_id: str
    output: RequestOutput


def _sum(one: T, other: T) -> T:
    """Adds two records of counts, field by field."""
    names = [field.name for field in fields(one)]
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
