"""How rewards are spread: over kept and rejected steps, and over right and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rsd_engine.evaluate.pictures.style import COLOURS, new_figure
from rsd_engine.evaluate.record import Record
from rsd_engine.evaluate.scored_steps import are_checked, scored_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 20


def draw_rewards(label: str, records: Sequence[Record]) -> Figure | None:
    """Two histograms, one above the other, with the threshold; None if no step was scored.

    Args:
        label: what the method is called.
        records: of one method with one setting.
    """
    steps = scored_steps(records)
    if not steps:
        return None
    figure = new_figure(6.5, 5.6)
    above, below = figure.subplots(2, sharex=True)
    _draw(
        above,
        ([step.reward for step in steps if step.kept], "kept"),
        ([step.reward for step in steps if not step.kept], "rejected"),
    )
    above.set_title(f"Rewards of the draft's steps: {label}")
    names = ("right", "wrong")
    if not are_checked(records):
        names = ("kept, in a right answer", "kept, in a wrong answer")
    _draw(
        below,
        ([step.reward for step in steps if step.right], names[0]),
        ([step.reward for step in steps if step.right is False], names[1]),
    )
    below.set_xlabel("reward")
    threshold = records[0].settings.get("threshold")
    for axes in (above, below):
        if threshold is not None:
            _draw_threshold(axes, threshold)
        axes.legend(loc="upper center")
    return figure


def _draw(axes: Axes, *groups: tuple[Sequence[float], str]) -> None:
    """One group as plain bars, the other as hatched ones in front."""
    from matplotlib.colors import to_rgba
    from matplotlib.ticker import ScalarFormatter

    for (rewards, name), colour, hatch in zip(groups, COLOURS, ("", "////"), strict=False):
        axes.hist(
            rewards,
            bins=_BINS,
            range=(0, 1),
            label=f"{name} ({len(rewards)})",
            facecolor="none" if hatch else to_rgba(colour, 0.5),
            edgecolor=colour,
            hatch=hatch,
        )
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylabel("steps")
    axes.set_xlim(0, 1)


def _draw_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(
        threshold, color="black", linestyle="--", linewidth=1.2, label=f"threshold {threshold:g}"
    )
