"""When the requests of a benchmark are sent."""

from __future__ import annotations

import math

import numpy as np


def arrivals(num: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which each request is sent: a Poisson process.

    Args:
        num: of requests.
        rate: of requests, on average, per second; infinity sends all at once.
        seed: equal arguments give equal times.
    """
    if math.isinf(rate):
        return [0.0] * num
    gaps = np.random.default_rng(seed).exponential(1 / rate, num)
    return [float(time) for time in np.cumsum(gaps) - gaps[0]]
