"""The figures of `bench.batching`: points, their table, and which rule is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import Any

from bench.lib.play import Played
from bench.lib.scenes import Scene
from bench.lib.timing import Timing
from bench.loop.runs import Run
from rsd_kernels.schedule.rules import BatchingRule

HEADERS = (
    "slots", "rejected", "rule", "runs", "tokens/s", "spread", "x most ready", "all busy",
    "x most ready", "passes a step", "rows a pass",
)  # fmt: skip
WHOLE, BUSY = "whole", "busy"
MOST_READY = BatchingRule.MOST_READY


@dataclass(frozen=True)
class RuleRun:
    """One scene by one rule.

    Attributes:
        seconds: per kept token, until the end of the scene; slots that are done leave passes
            emptier.
        busy_seconds: per kept token, until the first slot was done, as if more requests waited.
        passes: per kept step of any slot.
        rows: per pass, on average.
        rejected: share of draft steps that were rejected.
    """

    seconds: float
    busy_seconds: float
    passes: float
    rows: float
    rejected: float

    @classmethod
    def of(cls, scene: Scene, run: Run, played: Played) -> RuleRun:
        passes = run.ticks - run.launches  # the last tick of a launch has none
        return cls(
            seconds=played.seconds / (scene.slots * scene.tokens),
            busy_seconds=played.busy_seconds / played.busy_tokens,
            passes=passes,
            rows=sum(played.rows.values()) / (passes * scene.num_steps),
            rejected=run.rejected,
        )


@dataclass
class RulePoint:
    """What every rule took at one number of slots and one share of rejected steps."""

    scene: Scene
    runs: dict[BatchingRule, list[RuleRun]] = field(default_factory=dict)

    def seconds(self, rule: BatchingRule, part: str = WHOLE) -> Timing:
        """Seconds per kept token, in the `WHOLE` scene or while all slots were `BUSY`."""
        runs = self.runs[rule]
        return Timing(tuple(r.busy_seconds if part == BUSY else r.seconds for r in runs))

    def ratio(self, rule: BatchingRule, part: str = WHOLE) -> float:
        """Seconds over those of `MOST_READY`; below 1 is faster."""
        return self.seconds(rule, part).median / self.seconds(MOST_READY, part).median

    def figures(self, rule: BatchingRule) -> dict[str, Any]:
        """The figures of one rule, medians over its runs."""
        runs, seconds, busy = self.runs[rule], self.seconds(rule), self.seconds(rule, BUSY)
        return {
            "runs": len(runs),
            "seconds_a_token": seconds.median,
            "tokens_per_second": 1 / seconds.median,
            "spread": seconds.spread,
            "times_most_ready": self.ratio(rule),
            "busy_tokens_per_second": 1 / busy.median,
            "busy_times_most_ready": self.ratio(rule, BUSY),
            "passes_a_step": median(run.passes for run in runs),
            "rows_a_pass": median(run.rows for run in runs),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "slots": self.scene.slots,
            "rejected": self._rejected,
            "rules": {name_of(rule): self.figures(rule) for rule in self.runs},
            "best": {
                part: name_of(min(self.runs, key=lambda rule: self.ratio(rule, part)))
                for part in (WHOLE, BUSY)
            },
        }

    def rows(self) -> list[list[str]]:
        """The cells under `HEADERS`, one row per rule."""
        found = []
        for rule in self.runs:
            made = self.figures(rule)
            found.append(
                [
                    str(self.scene.slots), f"{self._rejected:.0%}", name_of(rule),
                    str(made["runs"]), f"{made['tokens_per_second']:.1f}", f"{made['spread']:.0%}",
                    f"{made['times_most_ready']:.3f}", f"{made['busy_tokens_per_second']:.1f}",
                    f"{made['busy_times_most_ready']:.3f}",
                    f"{made['passes_a_step']:.2f}", f"{made['rows_a_pass']:.2f}",
                ]
            )  # fmt: skip
        return found

    @property
    def _rejected(self) -> float:
        """The share that was rejected: equal for all rules, since the draws are."""
        return next(run.rejected for runs in self.runs.values() for run in runs)


def name_of(rule: BatchingRule) -> str:
    """A rule's name, such as `most-ready`."""
    return rule.name.lower().replace("_", "-")


def overall(points: Sequence[RulePoint], part: str) -> dict[str, float]:
    """By rule, the geometric mean of its ratios to `MOST_READY`; empty if there is no point."""
    if not points:
        return {}
    return {
        name_of(rule): geometric_mean([point.ratio(rule, part) for point in points])
        for rule in BatchingRule
    }


def best_of(means: Mapping[str, float]) -> str | None:
    """The rule with the least mean; None if nothing was measured."""
    return min(means, key=lambda name: means[name]) if means else None
