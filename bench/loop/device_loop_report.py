"""The figures of `bench.device_loop`, their tables and their bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.gpu.bars import LOOP, LOOP_AT_LEAST
from bench.lib.scenes import Scene
from bench.lib.timing import Timing
from bench.loop.lone_passes import LonePass
from bench.loop.runs import Run

HEADERS = (
    "slots", "rejected", "executor", "runs", "ms a step", "spread", "launches", "ticks", "idle",
    "x passes", "x limit",
)  # fmt: skip
BASELINE_HEADERS = ("rejected", "paper's ms", "spread", "ours", "spread", "times faster")


@dataclass
class LoopPoint:
    """What was measured at one number of slots and one share of rejected steps.

    Attributes:
        least: seconds of a step by the roofline.
        runs: by executor.
        passes: every pass of the scene, timed alone.
        baseline: seconds a step of the paper's arrangement, which reads the prompts.
        ours: likewise of the judged executor, in alternation with it.
    """

    scene: Scene
    least: float
    runs: dict[str, list[Run]] = field(default_factory=dict)
    passes: list[LonePass] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def add(self, executor: str, run: Run) -> None:
        self.runs.setdefault(executor, []).append(run)

    @property
    def passes_alone(self) -> float:
        """Seconds of the passes of a step alone, without the loop; 0 before they are timed."""
        return sum(p.count * p.alone.median for p in self.passes) / self.scene.steps

    @property
    def times_faster(self) -> float | None:
        return median(self.baseline) / median(self.ours) if self.baseline and self.ours else None

    def figures(self, executor: str) -> dict[str, Any]:
        """The figures of one executor, medians over its runs."""
        runs = self.runs[executor]
        seconds = Timing(tuple(run.seconds for run in runs))
        return {
            "runs": len(runs),
            "seconds_a_step": seconds.median,
            "spread": seconds.spread,
            "launches_a_step": median(run.launches for run in runs),
            "ticks_a_step": median(run.ticks for run in runs),
            "idle_share": median(run.idle for run in runs),
            "times_passes_alone": seconds.median / self.passes_alone if self.passes else None,
            "times_limit": seconds.median / self.least,
        }

    @property
    def rejected(self) -> float:
        """The share that was rejected: equal in all runs, since the draws are."""
        return next(run.rejected for runs in self.runs.values() for run in runs)

    def to_dict(self) -> dict[str, Any]:
        return {
            "slots": self.scene.slots,
            "asked_rejected": 1 - self.scene.acceptance,
            "rejected": self.rejected,
            "limit_seconds": self.least,
            "passes_alone_seconds": self.passes_alone if self.passes else None,
            "passes": [one.to_dict() for one in self.passes],
            "executors": {name: self.figures(name) for name in self.runs},
            "baseline_seconds": self.baseline,
            "ours_beside_it_seconds": self.ours,
            "times_faster_than_baseline": self.times_faster,
        }

    def rows(self) -> list[list[str]]:
        """The cells under `HEADERS`, one row per executor."""
        found = []
        for name in self.runs:
            made = self.figures(name)
            alone = made["times_passes_alone"]
            found.append(
                [
                    str(self.scene.slots), f"{self.rejected:.0%}", name, str(made["runs"]),
                    f"{1e3 * made['seconds_a_step']:.2f}", f"{made['spread']:.0%}",
                    f"{made['launches_a_step']:.3f}", f"{made['ticks_a_step']:.1f}",
                    f"{made['idle_share']:.2%}", "" if alone is None else f"{alone:.3f}",
                    f"{made['times_limit']:.2f}",
                ]
            )  # fmt: skip
        return found

    def baseline_row(self) -> list[str] | None:
        """The cells under `BASELINE_HEADERS`."""
        times = self.times_faster
        if times is None:
            return None
        theirs, ours = Timing(tuple(self.baseline)), Timing(tuple(self.ours))
        return [
            f"{self.rejected:.0%}", f"{1e3 * theirs.median:.1f}", f"{theirs.spread:.0%}",
            f"{1e3 * ours.median:.2f}", f"{ours.spread:.0%}", f"{times:.1f}",
        ]  # fmt: skip


def judge(points: Sequence[LoopPoint], executor: str) -> dict[str, dict[str, Any]]:
    """Every bar, beside the worst figure of this executor with one slot."""
    single = [point for point in points if point.scene.slots == 1 and executor in point.runs]
    found = {}
    for name, bar in LOOP.items():
        if name == LOOP_AT_LEAST:
            values = [point.times_faster for point in single]
        else:
            values = [point.figures(executor)[name] for point in single]
        known = [value for value in values if value is not None]
        worst = (min if name == LOOP_AT_LEAST else max)(known) if known else None
        passed = None
        if worst is not None:
            passed = worst >= bar if name == LOOP_AT_LEAST else worst <= bar
        found[name] = {"bar": bar, "worst": worst, "passed": passed}
    return found


def bar_lines(judged: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per bar, for people."""
    words = {True: "reached", False: "missed", None: "not measured"}
    return [
        f"{name}: {'at least' if name == LOOP_AT_LEAST else 'at most'} {entry['bar']:g}, "
        f"worst {'none' if entry['worst'] is None else format(entry['worst'], '.4g')}, "
        f"{words[entry['passed']]}"
        for name, entry in judged.items()
    ]
