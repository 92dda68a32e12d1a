"""The same problems with the draft alone, the target alone and RSD, on one engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rsd_engine.cli.progress import Progress
from rsd_engine.demo.problems import Problem, check_answer

if TYPE_CHECKING:
    from rsd_engine import Engine, Metrics, RequestOutput, SamplingParams
    from rsd_engine.sampling_params import ModeName

MODES: dict[ModeName, str] = {"draft": "draft alone", "target": "target alone", "rsd": "RSD"}
AT_ONCE = 16  # problems of a group, where they are not taken one by one
_WARM_UP_TOKENS = 16
_MAX_TOKENS = 256
_MAX_STEP_TOKENS = 64

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Measured:
    """What one mode did.

    Attributes:
        results: one per problem, of those that were solved one at a time.
        right: how many of their answers are right.
        seconds: that they took.
        seconds_at_once: that all problems took in groups of `AT_ONCE`.
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
    """Solves the problems in every mode, one at a time and `AT_ONCE` at once."""
    import torch

    asked = [messages(problem) for problem in problems]
    bar.status("one at a time")
    singly = _solve(engine, [[one] for one in asked], bar)
    bar.status(f"{AT_ONCE} at once")
    groups = [asked[start : start + AT_ONCE] for start in range(0, len(asked), AT_ONCE)]
    together = _solve(engine, groups, bar)
    return Comparison(
        problems=problems,
        seed=seed,
        threshold=threshold,
        device=str(engine.parts.core.state.length.device),
        threads=torch.get_num_threads(),
        modes={
            mode: Measured(
                results=tuple(singly[mode].results),
                right=_count_right(problems, singly[mode].results),
                seconds=singly[mode].seconds,
                seconds_at_once=together[mode].seconds,
            )
            for mode in MODES
        },
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


@dataclass
class _Timed:
    """Results of a mode as they came, and the seconds that it took."""

    results: list[RequestOutput] = field(default_factory=list)
    seconds: float = 0.0


def _solve(
    engine: Engine, groups: Sequence[list[Messages]], bar: Progress
) -> dict[ModeName, _Timed]:
    """Solves each group in every mode, after a warm-up of every mode.

    The modes take turns, so that what else the machine does hits all of them alike.
    """
    params = {mode: demo_params(mode) for mode in MODES}
    for wanted in params.values():
        list(engine.as_completed(groups[0], replace(wanted, max_tokens=_WARM_UP_TOKENS)))
    timed = {mode: _Timed() for mode in MODES}
    for group in groups:
        for mode, found in timed.items():
            started = time.perf_counter()
            results = [result for _, result in engine.as_completed(group, params[mode])]
            found.seconds += time.perf_counter() - started
            found.results += results
            for result in results:
                bar.advance(result.metrics)
    return timed


def _count_right(problems: Sequence[Problem], results: Sequence[RequestOutput]) -> int:
    return sum(
        check_answer(problem, result.outputs[0].text)
        for problem, result in zip(problems, results, strict=True)
    )
