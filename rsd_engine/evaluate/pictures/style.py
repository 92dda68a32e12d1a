"""How pictures look: told apart without colour, and legible in print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd_engine.evaluate.missing import needs_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart, but for yellow, too pale on white,
# and three of Tol's.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#882255",
    "#332288", "#999933",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rsd",  # so that the same records give the same file
}
_DOTS_PER_INCH = 200


@contextmanager
def pictures_style() -> Iterator[None]:
    """Everything drawn and saved inside has this look.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def require_matplotlib() -> None:
    """Raises ImportError, with what to install, if there is no matplotlib."""
    with needs_package("matplotlib", "eval"):
        import matplotlib  # noqa: F401


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as PNG and as SVG, and returns both files."""
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    figure.savefig(png, dpi=_DOTS_PER_INCH)
    figure.savefig(svg, metadata={"Date": None})
    return [png, svg]
