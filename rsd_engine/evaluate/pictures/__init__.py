"""Pictures of a run of `rsd eval`, as PNG and SVG: `draw_pictures`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsd_engine.evaluate.pictures.accuracy import FLOPS, SECONDS, draw_accuracy
from rsd_engine.evaluate.pictures.calibration import draw_calibration
from rsd_engine.evaluate.pictures.rewards import draw_rewards
from rsd_engine.evaluate.pictures.style import pictures_style, require_matplotlib, save
from rsd_engine.evaluate.record import Record
from rsd_engine.evaluate.summary import summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_pictures", "require_matplotlib"]


def draw_pictures(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draws what there is to draw of these records, and returns the files.

    Args:
        records: of one run, at least one.
        folder: created if it does not exist; files of these names are replaced.

    Raises:
        ImportError: matplotlib or scipy is not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with pictures_style():
        return [path for name, figure in _figures(records) for path in save(figure, folder / name)]


def _figures(records: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    rows = summarise(records)
    yield "accuracy_flops", draw_accuracy(rows, FLOPS)
    yield "accuracy_seconds", draw_accuracy(rows, SECONDS)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    for label, group in groups.items():
        figure = draw_rewards(label, group)
        if figure is not None:
            yield f"rewards_{_file_name(label)}", figure
    figure = draw_calibration(records)
    if figure is not None:
        yield "calibration", figure


def _file_name(label: str) -> str:
    return "".join(one if one.isalnum() or one in ".-" else "_" for one in label)
