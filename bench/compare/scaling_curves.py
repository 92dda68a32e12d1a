"""Curves through the measured costs, and their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.compare.scaling_work import BASELINE, OURS


@dataclass(frozen=True)
class Fit:
    """y = constant + linear x + quadratic x^2, by least squares.

    Attributes:
        error: largest distance of a point from the curve, in units of y.
    """

    constant: float
    linear: float
    quadratic: float
    error: float

    def __str__(self) -> str:
        bend = f" {self.quadratic:+.3g} x^2" if self.quadratic else ""
        return f"{self.constant:.3g} {self.linear:+.3g} x{bend} (at most {self.error:.2g} off)"


def fit(x: Sequence[int], y: Sequence[float], degree: int) -> Fit:
    """The curve of degree 1 or 2 that fits the points best."""
    found = np.polynomial.Polynomial.fit(x, y, degree).convert()
    constant, linear, quadratic = (float(value) for value in [*found.coef, 0.0, 0.0][:3])
    error = float(np.abs(found(np.asarray(x)) - np.asarray(y)).max())
    return Fit(constant, linear, quadratic, error)


def slopes_of(figures: dict[str, Any], degree: int) -> dict[str, Fit]:
    """By contender, the curve of milliseconds through its medians."""
    return {
        name: fit(figures["values"], [1000 * s for s in seconds], degree)
        for name, seconds in figures["seconds"].items()
    }


def fits(steps: dict[str, Any]) -> dict[str, Fit]:
    """Of tokens that the PRM reads: a line for ours, parabolas for the baseline and for ours."""
    values, read = steps["values"], steps["prm_tokens"]
    return {
        "ours": fit(values, read[OURS], 1),
        "ours, quadratic": fit(values, read[OURS], 2),
        "baseline": fit(values, read[BASELINE], 2),
    }


def verdict(found: dict[str, Fit]) -> str:
    """The curves of `fits`, for people."""
    line, bent, base = found["ours"], found["ours, quadratic"], found["baseline"]
    return (
        f"PRM tokens an answer of k steps: ours {line.constant:.1f} + {line.linear:.3f} k, at most "
        f"{line.error:.1f} tokens off the line (k^2 term of a parabola: {bent.quadratic:.5f}); "
        f"baseline {base.constant:.1f} + {base.linear:.3f} k + {base.quadratic:.3f} k^2, at most "
        f"{base.error:.1f} off"
    )


def draw(steps: Mapping[str, Any], path: Path) -> None:
    """Draws the tokens that the reward model reads, and the seconds, by number of steps.

    Needs matplotlib (extra `bench`).

    Args:
        steps: {"values", "prm_tokens": {name: counts}, "seconds": {name: medians}}.
        path: of the picture; the suffix chooses the format.
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
