"""Whether rewards are probabilities: the share of what is right among what has a reward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsd_engine.evaluate.pictures.style import COLOURS, LINES, MARKERS, new_figure
from rsd_engine.evaluate.record import Record
from rsd_engine.evaluate.scored_steps import are_checked, scored_steps
from rsd_engine.evaluate.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 10
_OF = {
    "last": "last reward",
    "mean": "mean of the rewards",
    "min": "lowest reward",
    "product": "product of the rewards",
}
Judged = tuple[float, bool]
"""A reward, and whether what it was given for is right."""


@dataclass(frozen=True)
class Bin:
    """Rewards that are near each other: their mean, the share that is right, and its interval."""

    reward: float
    share: float
    low: float
    high: float
    count: int


def draw_calibration(records: Sequence[Record]) -> Figure | None:
    """Share of right steps, and of right solutions, against reward; None if nothing was scored."""
    series = {name: found for name, found in _series(records).items() if found}
    if not series:
        return None
    figure = new_figure(6.5, 5.6)
    axes = figure.subplots()
    axes.plot((0, 1), (0, 100), color="grey", linewidth=1, label="reward = probability")
    for index, (name, judged) in enumerate(series.items()):
        _draw(axes, index, name, judged)
    axes.set_xlabel("reward, mean of each tenth of the scale")
    axes.set_ylabel("right, % (95 % interval)")
    axes.set_title("Calibration of the rewards")
    figure.legend(loc="outside lower center")
    return figure


def _series(records: Sequence[Record]) -> dict[str, list[Judged]]:
    """What was scored: each step once, and each solution whose rewards became one."""
    steps = {
        step.context: (step.reward, step.right)
        for step in scored_steps(records)
        if step.right is not None
    }
    what = "the draft's steps, checked" if are_checked(records) else "kept steps, by their answer"
    found: dict[str, dict[tuple[str, str], Judged]] = {what: steps}
    for record in records:
        aggregate = record.settings.get("aggregate")
        for sample in record.samples:
            if aggregate is not None and sample.reward is not None:
                name = f"the draft's answers, {_OF[str(aggregate)]}"
                place = (record.question.id, sample.text)
                found.setdefault(name, {})[place] = (sample.reward, sample.correct)
    return {name: list(judged.values()) for name, judged in found.items()}


def bins(judged: Iterable[Judged]) -> list[Bin]:
    """The tenths of [0, 1] that have rewards, lowest first."""
    groups: dict[int, list[Judged]] = {}
    for reward, right in judged:
        groups.setdefault(min(int(reward * _BINS), _BINS - 1), []).append((reward, right))
    return [_bin(group) for _, group in sorted(groups.items())]


def calibration_error(found: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of share and reward (Guo et al. 2017)."""
    total = sum(one.count for one in found)
    return sum(one.count * abs(one.share - one.reward) for one in found) / total


def _bin(group: Sequence[Judged]) -> Bin:
    right, total = sum(right for _, right in group), len(group)
    low, high = wilson_interval(right, total)
    return Bin(sum(reward for reward, _ in group) / total, right / total, low, high, total)


def _draw(axes: Axes, index: int, name: str, judged: Sequence[Judged]) -> None:
    found = bins(judged)
    axes.errorbar(
        [one.reward for one in found],
        [100 * one.share for one in found],
        yerr=[
            [100 * (one.share - one.low) for one in found],
            [100 * (one.high - one.share) for one in found],
        ],
        label=f"{name} ({len(judged)}; mean error {calibration_error(found):.3f})",
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=LINES[index % len(LINES)],
        linewidth=1.2,
        elinewidth=0.7,
        capsize=2,
    )
