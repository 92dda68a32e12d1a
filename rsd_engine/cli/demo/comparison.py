"""The same problems with the draft alone, the target alone and RSD, on one engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rsd_engine.cli.progress import Progress

if TYPE_CHECKING:
    from rsd_engine import Engine, Metrics, RequestOutput, SamplingParams
    from rsd_engine.demo.problems import Problem
    from rsd_engine.sampling_params import ModeName

MODES: dict[ModeName, str] = {"draft": "draft alone", "target": "target alone", "rsd": "RSD"}
AT_ONCE = 16  # problems that run at once, in the run that does not take them one by one
_WARM_UP_TOKENS = 16
_MAX_TOKENS = 256
_MAX_STEP_TOKENS = 64

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Measured:
    """What one mode did.

    Attributes:
        results: one per problem, of the run that took one after the other.
        right: how many answers are right.
        seconds: of that run.
        seconds_at_once: of the run with `AT_ONCE` problems at a time.
    """

    results: tuple[RequestOutput, ...]
    right: int
    seconds: float
    seconds_at_once: float

    @property
    def metrics(self) -> Metrics:
        """The sums over the results."""
        first, *rest = (result.metrics for result in self.results)
        return sum(rest, start=first)


@dataclass(frozen=True)
class Comparison:
    """All modes on the same problems, and under which conditions."""

    problems: Sequence[Problem]
    seed: int
    threshold: float
    device: str
    threads: int
    modes: dict[ModeName, Measured]


def compare(
    engine: Engine, problems: Sequence[Problem], bar: Progress, *, seed: int, threshold: float
) -> Comparison:
    """Solves the problems in every mode, one at a time and `AT_ONCE` at a time."""
    import torch

    return Comparison(
        problems=problems,
        seed=seed,
        threshold=threshold,
        device=str(engine.parts.core.state.length.device),
        threads=torch.get_num_threads(),
        modes={mode: _measure(engine, problems, mode, bar) for mode in MODES},
    )


def demo_params(mode: ModeName) -> SamplingParams:
    """Greedy decoding, long enough for the longest solution."""
    from rsd_engine import SamplingParams

    return SamplingParams(
        temperature=0.0, max_tokens=_MAX_TOKENS, max_step_tokens=_MAX_STEP_TOKENS, mode=mode
    )


def messages(problem: Problem) -> Messages:
    """The problem as a conversation."""
    return [{"role": "user", "content": problem.question}]


def _measure(
    engine: Engine, problems: Sequence[Problem], mode: ModeName, bar: Progress
) -> Measured:
    from rsd_engine.demo.problems import check_answer

    asked, params = [messages(problem) for problem in problems], demo_params(mode)
    bar.status(f"{MODES[mode]}, one at a time")
    results, seconds = _timed(engine, [[one] for one in asked], params, bar)
    bar.status(f"{MODES[mode]}, {AT_ONCE} at a time")
    _, seconds_at_once = _timed(engine, [asked], params, bar)
    right = sum(
        check_answer(problem, result.outputs[0].text)
        for problem, result in zip(problems, results, strict=True)
    )
    return Measured(tuple(results), right, seconds, seconds_at_once)


def _timed(
    engine: Engine, groups: list[list[Messages]], params: SamplingParams, bar: Progress
) -> tuple[list[RequestOutput], float]:
    """Solves one group after the other, after a warm-up; gives the results as they came."""
    short = replace(params, max_tokens=_WARM_UP_TOKENS)
    list(engine.as_completed(groups[0][:AT_ONCE], short))
    results = []
    started = time.perf_counter()
    for group in groups:
        for _, result in engine.as_completed(group, params):
            results.append(result)
            bar.advance(result.metrics)
    return results, time.perf_counter() - started
