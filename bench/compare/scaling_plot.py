"""The picture of `bench.scaling`; needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(steps: Mapping[str, Any], path: Path) -> None:
    """Writes tokens read by the reward model, and seconds, by the number of steps.

    Args:
        steps: {"values", "prm_tokens": {name: counts}, "seconds": {name: medians}}.
        path: where to; the suffix chooses the format.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display
    matplotlib.rcParams["svg.hashsalt"] = "rsd-engine"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    labels = {"prm_tokens": "tokens the PRM reads an answer", "seconds": "seconds an answer"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for name, values in steps[key].items():
            axis.plot(steps["values"], values, marker=".", label=name)
        axis.set(xlabel="steps", ylabel=label, xlim=0, ylim=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    date = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=date)
    pyplot.close(figure)
