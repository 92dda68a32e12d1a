"""Part `rsd` of `bench.compare`: seconds to answer problems of the demo family, by contender."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bench.compare.effect import Models
from bench.compare.rsd_contenders import PAPER, RSD, TARGET, RsdContenders
from bench.lib import report, timing
from rsd_engine.demo.problems import Problem, check_answer

HEADERS = ("batch", "what", "seconds", "min", "max", "spread", "CPU s", "right %", "RSD's speed-up")
CEILING = "ceiling of RSD"


def measure(models: Models, problems: Sequence[Problem], batch: int, runs: int) -> dict[str, Any]:
    """The gate, then all contenders in alternation.

    Args:
        models: checkpoint folders.
        problems: answered in groups of `batch`, one group after another.
        batch: problems answered at once.
        runs: timed runs of each contender.

    Raises:
        timing.Mismatch: the paper's arrangement gives other answers than this engine.
    """
    contenders = RsdContenders.load(models, batch)
    questions = [problem.question for problem in problems]
    agreement = contenders.require_agreement(questions)
    least = contenders.least_seconds(questions)
    solvers = contenders.solvers()
    right = {name: _accuracy(solve(questions), problems) for name, solve in solvers.items()}
    metered = {name: Metered(partial(solve, questions)) for name, solve in solvers.items()}
    timings = timing.alternate(metered, runs, warmup=0)  # the runs above were the warm-up
    contenders.close()
    return {
        "batch": batch,
        "problems": len(problems),
        "answers_compared": sum(found.answers for found in agreement.values()),
        "ties": sum(found.ties for found in agreement.values()),
        "ceiling_seconds": least,
        "limit_share": least / timings[RSD].median,
        "accuracy": right,
        "seconds": {name: list(found.seconds) for name, found in timings.items()},
        "cpu_seconds": {name: found.cpu_seconds for name, found in metered.items()},
        **against_paper(timings),
        "vs_target": compared(timings[RSD], timings[TARGET]),
    }


class Metered:
    """Counts the processor seconds of each call, over all threads.

    On a machine that others use too, processor time still shows the work of a call where wall time
    includes waiting.
    """

    def __init__(self, fn: Callable[[], object]) -> None:
        self._fn = fn
        self.cpu_seconds: list[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        self._fn()
        self.cpu_seconds.append(time.process_time() - start)


def against_paper(timings: Mapping[str, timing.Timing]) -> dict[str, Any]:
    """How many times faster RSD is than each kind of the paper's arrangement, and the fastest."""
    each = {name: compared(timings[RSD], timings[name]) for name in PAPER.values()}
    fastest = min(PAPER.values(), key=lambda name: timings[name].median)
    return {"baseline": fastest, **each[fastest], "each": each}


def compared(ours: timing.Timing, theirs: timing.Timing) -> dict[str, float]:
    """How many times faster `ours` is, and the spread of this over pairs of adjacent runs."""
    ratio = theirs.median / ours.median
    pairs = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return {"ratio": ratio, "spread": (max(pairs) - min(pairs)) / ratio}


def rows_of(m: Mapping[str, Any]) -> list[list[str]]:
    """The rows under HEADERS of what `measure` found, the ceiling first."""
    size = str(m["batch"])
    rows = [[size, CEILING, f"{m['ceiling_seconds']:.3f}", "", "", "", "", "", ""]]
    ours = timing.Timing(tuple(m["seconds"][RSD])).median
    for name, seconds in m["seconds"].items():
        found = timing.Timing(tuple(seconds))
        rows.append(
            [size, name, f"{found.median:.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}",
             f"{found.spread:.1%}", f"{statistics.median(m['cpu_seconds'][name]):.3f}",
             f"{100 * m['accuracy'][name]:.0f}",
             f"{found.median / ours:.2f}x"]
        )  # fmt: skip
    return rows


def show(m: Mapping[str, Any]) -> str:
    """The text for people: the gate, the table, and RSD beside the target alone."""
    gate = (
        f"gate passed: {m['answers_compared']} answers of the paper's arrangement are those of "
        f"this engine, step by step; {m['ties']} diverge at a tie within rounding"
    )
    target = m["vs_target"]["ratio"]
    verdict = "faster" if target >= 1 else "slower"
    beside = (
        f"batch {m['batch']}: RSD is {m['ratio']:.2f}x as fast as {m['baseline']}, and "
        f"{target:.2f}x as fast ({verdict}) as the target alone on this engine"
    )
    return "\n".join([gate, report.format_table(HEADERS, rows_of(m)), beside])


def _accuracy(texts: Sequence[str], problems: Sequence[Problem]) -> float:
    right = sum(check_answer(p, text) for p, text in zip(problems, texts, strict=True))
    return right / len(problems)
