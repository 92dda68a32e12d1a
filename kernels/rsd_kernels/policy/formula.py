"""The weighting functions of the paper: from the reward of a step to the chance to keep it.

Stated here once in Python, for policies and twins, and once as a kernel (`policy.kernel`).
Source: Liao et al., ICML 2025, Table 1.
"""

from __future__ import annotations

import ctypes
import math
from enum import IntEnum


class PolicyKind(IntEnum):
    """The weighting functions and what their two numbers a and b mean."""

    CONSTANT = 0  # a = p
    THRESHOLD = 1  # a = threshold
    CLIP = 2
    SIGMOIDAL = 3
    LOGISTIC = 4  # a = alpha, b = threshold


def accept_probability(kind: int, a: float, b: float, reward: float) -> float:
    """w(r) in [0, 1] of the paper's Table 1; 0 for a reward that is not a number."""
    if math.isnan(reward):
        return 0.0
    if kind == PolicyKind.CONSTANT:
        return a
    if kind == PolicyKind.THRESHOLD:
        return float(_float32(reward) >= _float32(a))
    if kind == PolicyKind.CLIP:
        return min(1.0, max(0.0, reward))
    if kind == PolicyKind.SIGMOIDAL:  # r / (1 + r), written so that it holds for infinity too
        return 1.0 / (1.0 + 1.0 / reward) if reward > 0 else 0.0
    z = -a * (reward - b)
    return 1.0 / (1.0 + math.exp(z)) if z < 700 else 0.0  # exp(710) overflows


def _float32(value: float) -> float:
    """Rounded as on the device, so that a reward of 0.7 reaches a threshold of 0.7."""
    return ctypes.c_float(value).value
