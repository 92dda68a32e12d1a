"""Intervals and tests against scipy's own, reached another way, and against the formulas."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binom, norm

from rsd_engine.evaluate.statistics import mcnemar, wilson_interval


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 10), (423, 500), (1, 1)])
def test_wilson(right: int, total: int) -> None:
    z = float(norm.ppf(0.975))
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    half /= 1 + z * z / total
    assert wilson_interval(right, total) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_nothing_tells_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (5, 5), (12, 3), (3, 12), (40, 20)])
def test_mcnemar(better: int, worse: int) -> None:
    tail = binom.cdf(min(better, worse), better + worse, 0.5)
    assert mcnemar(better, worse) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
