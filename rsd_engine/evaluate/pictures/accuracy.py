"""Accuracy against cost: Liao et al. 2025 (RSD), figures 1 and 4."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rsd_engine.evaluate.pictures.style import COLOURS, LINES, MARKERS, new_figure
from rsd_engine.evaluate.record import label
from rsd_engine.evaluate.summary import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBER = re.compile(r"@(\d+)")
_SAME_COST, _SAME_ACCURACY = 0.03, 1.0  # relative, and in percent: markers that cover each other


@dataclass(frozen=True)
class Cost:
    """What an answer costs.

    Attributes:
        title: of the axis.
        unit: of its numbers.
        of: the mean over a row's answers.
    """

    title: str
    unit: str
    of: Callable[[Row], float]


def _answers(row: Row) -> int:
    return row.questions * len(row.seeds)


FLOPS = Cost(
    "FLOPs per answer, of tokens written and scored",
    "",
    lambda row: row.counts.flops_generated / _answers(row),
)
SECONDS = Cost("time per answer, in a batch", "s", lambda row: row.seconds / _answers(row))


@dataclass(frozen=True)
class Point:
    """A method with one setting.

    Attributes:
        order: its place in the series: the threshold or the number of samples.
        notes: what it is called beside the marker; several if it stands for several settings.
    """

    order: float
    notes: tuple[str, ...]
    cost: float
    accuracy: float
    low: float
    high: float


def draw_accuracy(rows: Sequence[Row], cost: Cost) -> Figure:
    """A marker for each method and setting, with Wilson's 95 % interval; lines join settings."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    for index, (name, points) in enumerate(make_series(rows, cost).items()):
        _draw_series(axes, index, name, points)
    axes.margins(x=0.07, y=0.12)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(cost.unit))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(cost.title)
    axes.set_ylabel("right answers, % (95 % interval)")
    axes.set_title(f"Accuracy against cost, {rows[0].questions} questions")
    figure.legend(loc="outside right upper")
    return figure


def make_series(rows: Sequence[Row], cost: Cost) -> dict[str, list[Point]]:
    """The points of each method, by its name without the setting, in the order of the setting."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        name = _NUMBER.sub("@N", row.method)
        if cost.of(row) > 0:  # the axis is logarithmic
            found.setdefault(name, []).append(_point(row, cost))
    return {
        name: _joined(sorted(points, key=lambda point: point.order))
        for name, points in found.items()
    }


def _point(row: Row, cost: Cost) -> Point:
    number = _NUMBER.search(row.method)
    text = label(row.method, row.settings)
    setting = number[1] if number else text.removeprefix(row.method).strip()
    order = float(setting) if setting else 0.0
    notes = (f"@{setting}" if number else setting,) if setting else ()
    values = (100 * value for value in (row.accuracy, row.low, row.high))
    return Point(order, notes, cost.of(row), *values)


def _joined(points: Sequence[Point]) -> list[Point]:
    """One point for those that follow each other in about the same place."""
    found: list[Point] = []
    for point in points:
        last = found[-1] if found else None
        if last is not None and _covers(last, point):
            found[-1] = replace(last, notes=last.notes + point.notes)
        else:
            found.append(point)
    return found


def _covers(one: Point, other: Point) -> bool:
    near = abs(other.cost / one.cost - 1) < _SAME_COST
    return near and abs(one.accuracy - other.accuracy) < _SAME_ACCURACY


def _draw_series(axes: Axes, index: int, name: str, points: Sequence[Point]) -> None:
    axes.errorbar(
        [point.cost for point in points],
        [point.accuracy for point in points],
        yerr=[
            [point.accuracy - point.low for point in points],
            [point.high - point.accuracy for point in points],
        ],
        label=name,
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=LINES[index % len(LINES)] if len(points) > 1 else "none",
        markersize=6,
        linewidth=1.2,
        elinewidth=0.7,
        capsize=2,
    )
    side = -1 if index % 2 else 1  # below and above, by turns, as methods often come close
    for point in points:
        notes = dict.fromkeys(point.notes[:1] + point.notes[-1:])  # the first and the last
        text = "\N{EN DASH}".join(notes)
        axes.annotate(
            text,
            (point.cost, point.accuracy),
            (3, 5 * side),
            textcoords="offset points",
            fontsize=7,
            verticalalignment="bottom" if side > 0 else "top",
            rotation=45 * side,
            rotation_mode="anchor",
        )
