"""One answer of one method to one question, as `rsd eval` writes it: a line of JSON.

A record has only what the question, the method and the seed decide, but for its times, `TIMES`: a
run that was killed and resumed gives otherwise the same records as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rsd_engine.outputs import (
    Candidate,
    CompletionOutput,
    FinishReason,
    Metrics,
    Step,
    StepSource,
)

AnswerKind = Literal["math", "choice", "demo"]
TIMES = ("seconds", "role_seconds")  # of a record: what another run would not repeat
_DIGITS = 7  # of a reward: as many as float32 holds, so that no threshold lies between


@dataclass(frozen=True)
class Question:
    """A question whose answer is known.

    Attributes:
        id: names it; no other question of a run has it.
        text: what the models are asked, choices included.
        answer: the right one: LaTeX or a number, or the letter of a choice.
        source: the data set that it is from, such as "gsm8k" or "demo".
        kind: how answers are compared: "math", "choice" (a letter), or "demo" (an integer).
    """

    id: str
    text: str
    answer: str
    source: str
    kind: AnswerKind = "math"


@dataclass(frozen=True)
class ScoredText:
    """A draft's step that was rejected."""

    text: str
    reward: float | None  # None if it was not scored


@dataclass(frozen=True)
class CandidateText:
    """A candidate that another one was taken in place of."""

    text: str
    source: StepSource
    reward: float | None


@dataclass(frozen=True)
class StepRecord:
    """A kept step, who wrote it, and what it stands in place of."""

    text: str  # the texts of all steps add up to the answer's
    source: StepSource
    reward: float | None = None  # in [0, 1]; None if it was not scored
    rejected: ScoredText | None = None
    candidates: tuple[CandidateText, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One of several answers to a question, of which the method chose one.

    Attributes:
        reward: of its steps together, as the method takes them; None without rewards.
    """

    text: str
    found: str | None
    correct: bool
    reward: float | None = None


@dataclass(frozen=True)
class Counts:
    """What an answer cost, all its samples together.

    Attributes:
        draft_tokens: written by the draft and kept.
        target_tokens: written by the target and kept.
        discarded_tokens: written by either and not kept.
        prm_tokens_read: rows of the PRM's passes.
        flops_generated: 2 x parameters x tokens written or scored, as the paper counts.
        flops_all: the same for every row that a model read, prompts included.
    """

    draft_tokens: int = 0
    target_tokens: int = 0
    discarded_tokens: int = 0
    prm_tokens_read: int = 0
    steps_accepted: int = 0
    steps_rejected: int = 0
    flops_generated: int = 0
    flops_all: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of(cls, metrics: Metrics) -> Counts:
        """Those of a request."""
        draft, target = metrics.draft, metrics.target
        return cls(
            draft_tokens=draft.tokens_generated,
            target_tokens=target.tokens_generated,
            discarded_tokens=draft.tokens_discarded + target.tokens_discarded,
            prm_tokens_read=metrics.prm.tokens_read,
            steps_accepted=metrics.steps_accepted,
            steps_rejected=metrics.steps_rejected,
            flops_generated=metrics.flops.generated,
            flops_all=metrics.flops.all,
        )


@dataclass(frozen=True)
class RoleSeconds:
    """Time of the passes of each model, all samples together: an answer's share of each pass.

    Those of all answers add up to the time of all passes, which `Record.seconds` of all contain. Of
    a server in place of a model they are the time of its answers, some of which come at once.
    """

    draft: float = 0.0
    target: float = 0.0
    prm: float = 0.0

    def __add__(self, other: RoleSeconds) -> RoleSeconds:
        return RoleSeconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of(cls, metrics: Metrics) -> RoleSeconds:
        """Those of a request, to the microsecond."""
        return cls(*(round(getattr(metrics, f.name).seconds, 6) for f in fields(cls)))


@dataclass(frozen=True)
class Record:
    """A method's answer to a question.

    Attributes:
        settings: what the method took besides the models, such as {"threshold": 0.7}.
        text: the final answer; of several samples the chosen one's.
        found: the answer extracted from it; None if there is none.
        seconds: its share of the time that its batch of questions took, so that the seconds of a
            method's records add up to the time that the method took.
        role_seconds: what each model took for it; None in records that were written without.
        steps: of the final answer, in order.
        samples: all answers, for methods that choose one of several.
        error: what went wrong, in one line.
    """

    question: Question
    method: str
    settings: Mapping[str, Any]
    seed: int
    text: str
    found: str | None
    correct: bool
    finish_reason: FinishReason
    counts: Counts
    seconds: float
    role_seconds: RoleSeconds | None = None
    steps: tuple[StepRecord, ...] = ()
    samples: tuple[Sample, ...] = ()
    error: str | None = None

    @property
    def label(self) -> str:
        """The method and, if it was tried at several, the threshold: `rsd 0.7`."""
        return label(self.method, self.settings)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; `error`, `samples` and `role_seconds` only where there are any."""
        values: dict[str, Any] = {
            "question": vars(self.question),
            "method": self.method,
            "settings": dict(self.settings),
            "seed": self.seed,
            "text": self.text,
            "found": self.found,
            "correct": self.correct,
            "finish_reason": self.finish_reason,
            "steps": [_step_json(step) for step in self.steps],
        }
        if self.error is not None:
            values["error"] = self.error
        if self.samples:
            values["samples"] = [vars(sample) for sample in self.samples]
        values |= {"counts": vars(self.counts), "seconds": self.seconds}
        if self.role_seconds is not None:
            values["role_seconds"] = vars(self.role_seconds)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Reads what `to_json` gave; other keys are passed over.

        Raises:
            ValueError: it is no such record; the message names what is wrong.
        """
        known = _known(cls, values)
        question = _known(Question, _mapping("question", known))
        if question.get("kind", "math") not in get_args(AnswerKind):
            raise ValueError(
                f"question.kind must be one of {list(get_args(AnswerKind))}, got "
                f"{question['kind']!r}"
            )
        times = known.get("role_seconds")
        try:
            return cls(
                **known
                | {
                    "question": Question(**question),
                    "counts": Counts(**_known(Counts, _mapping("counts", known))),
                    "role_seconds": None
                    if times is None
                    else RoleSeconds(**_known(RoleSeconds, times)),
                    "steps": tuple(map(_step_from, known.get("steps", ()))),
                    "samples": tuple(Sample(**_known(Sample, s)) for s in known.get("samples", ())),
                }
            )
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a record of `rsd eval`: {error}") from None


def label(method: str, settings: Mapping[str, Any]) -> str:
    """What a method is called in tables and plots."""
    is_swept = method.isidentifier() or "+" in method
    threshold = settings.get("threshold")
    return f"{method} {threshold:g}" if is_swept and threshold is not None else method


def read_records(lines: str) -> list[Record]:
    """The records of a JSONL file's text, in order; blank lines and a torn last one are left out.

    Raises:
        ValueError: a line is no record; the message has its number.
    """
    found = []
    numbered = list(enumerate(lines.split("\n"), start=1))
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(numbered):  # no newline ends it: a run was killed while it wrote
                break
            raise ValueError(f"line {number} is not JSON") from None
        try:
            if not isinstance(values, dict):
                raise ValueError(f"must be a JSON object, got {type(values).__name__}")
            found.append(Record.from_json(values))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return found


def step_records(output: CompletionOutput) -> tuple[StepRecord, ...]:
    """The steps of an output."""
    return tuple(map(_step_record, output.steps))


def lasting(reward: float | None) -> float | None:
    """A reward as a record keeps it: in few digits, and None for NaN."""
    return None if reward is None or math.isnan(reward) else float(f"{reward:.{_DIGITS}g}")


def _step_record(step: Step) -> StepRecord:
    rejected = step.rejected
    return StepRecord(
        text=step.text,
        source=step.source,
        reward=lasting(step.reward),
        rejected=None if rejected is None else ScoredText(rejected.text, lasting(rejected.reward)),
        candidates=tuple(map(_candidate, step.candidates)),
    )


def _candidate(candidate: Candidate) -> CandidateText:
    return CandidateText(candidate.text, candidate.source, lasting(candidate.reward))


def _step_json(step: StepRecord) -> dict[str, Any]:
    return {
        **vars(step),
        "rejected": None if step.rejected is None else vars(step.rejected),
        "candidates": [vars(candidate) for candidate in step.candidates],
    }


def _step_from(values: Mapping[str, Any]) -> StepRecord:
    known = _known(StepRecord, values)
    rejected = known.get("rejected")
    candidates = known.get("candidates", ())
    return StepRecord(
        **known
        | {
            "rejected": None if rejected is None else ScoredText(**_known(ScoredText, rejected)),
            "candidates": tuple(CandidateText(**_known(CandidateText, c)) for c in candidates),
        }
    )


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _mapping(name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    found = values.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be an object, got {found!r:.40}")
    return found
