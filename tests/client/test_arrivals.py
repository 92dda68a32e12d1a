"""The schedule of a benchmark."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rsd_engine.client.arrivals import arrivals


def test_equal_seeds_give_equal_times() -> None:
    assert arrivals(50, 3.0, seed=7) == arrivals(50, 3.0, seed=7)
    assert arrivals(50, 3.0, seed=7) != arrivals(50, 3.0, seed=8)


def test_infinity_sends_all_at_once() -> None:
    assert arrivals(3, math.inf, seed=0) == [0.0, 0.0, 0.0]


def test_it_is_a_poisson_process() -> None:
    """Gaps have the mean 1 / rate, a deviation equal to it, and no memory."""
    times = arrivals(20_001, 4.0, seed=1)
    assert times[0] == 0.0
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    assert (gaps > 0.25).mean() == pytest.approx(math.exp(-1), abs=0.015)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03
