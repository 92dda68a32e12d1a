"""The numbers of a benchmark, with vLLM's names and meanings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rsd_engine.client.load import Load
from rsd_engine.client.request import Answer
from rsd_engine.client.speculation import Speculation


@dataclass(frozen=True)
class Spread:
    """Of some times, in ms."""

    mean: float
    median: float
    std: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """What a run measured.

    Attributes:
        load: how the server was pressed.
        duration: of the run, in seconds.
        completed: requests that ended well; all below is about them alone.
        errors: message -> how many requests failed with it.
        input_tokens: of all prompts; None if the server told no usage, likewise below.
        output_tokens: of all answers.
        chunks: of all answers, those with text.
        ttft: time to first token: to the first chunk with text.
        tpot: time per output token after the first: (latency - TTFT) / (tokens - 1).
        itl: inter-token latency: between two chunks with text.
        e2el: end-to-end latency.
        speculation: of the drafts; None if the server tells nothing of them.
    """

    load: Load
    duration: float
    completed: int
    errors: dict[str, int]
    input_tokens: int | None
    output_tokens: int | None
    chunks: int
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2el: Spread | None
    speculation: Speculation | None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; an infinite rate is text, as JSON has no infinity."""
        values = asdict(self)
        if values["load"]["request_rate"] == float("inf"):
            values["load"]["request_rate"] = "inf"
        return values


def summarise(
    load: Load, answers: Sequence[Answer], duration: float, counted: Speculation | None
) -> Summary:
    """The numbers of a run.

    Args:
        load: how the server was pressed.
        answers: all of them.
        duration: of the run, in seconds.
        counted: what the counters of the server said of drafts during the run, for servers whose
            answers say nothing of them.
    """
    good = [answer for answer in answers if answer.error is None]
    told = [answer.speculation for answer in good if answer.speculation is not None]
    return Summary(
        load=load,
        duration=duration,
        completed=len(good),
        errors=dict(Counter(a.error for a in answers if a.error is not None)),
        input_tokens=_total([answer.prompt_tokens for answer in good]),
        output_tokens=_total([answer.completion_tokens for answer in good]),
        chunks=sum(len(answer.texts) for answer in good),
        ttft=_spread([a.texts[0] - a.sent for a in good if a.texts]),
        tpot=_spread([time for a in good for time in _time_per_token(a)]),
        itl=_spread([float(gap) for a in good for gap in np.diff(a.texts)]),
        e2el=_spread([a.ended - a.sent for a in good]),
        speculation=sum(told, start=Speculation()) if told else counted,
    )


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _time_per_token(answer: Answer) -> list[float]:
    tokens = answer.completion_tokens or 0
    if tokens < 2 or not answer.texts:
        return []
    return [(answer.ended - answer.texts[0]) / (tokens - 1)]


def _spread(seconds: Sequence[float]) -> Spread | None:
    if not seconds:
        return None
    ms = np.asarray(seconds) * 1e3
    return Spread(
        mean=float(ms.mean()),
        median=float(np.median(ms)),
        std=float(ms.std()),
        p99=float(np.percentile(ms, 99)),
    )
