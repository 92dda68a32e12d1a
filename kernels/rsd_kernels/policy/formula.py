"""The weighting functions of the paper: from the reward of a step to the chance to keep it.

Stated here once in Python, for policies and twins alike, and once as a kernel (`policy.kernel`).
Source: Liao et al., ICML 2025, Table 1.
"""

from __future__ import annotations

import math
from enum import IntEnum


class PolicyKind(IntEnum):
    """The weighting functions of the paper's Table 1 (columns `policy_a`, `policy_b`)."""

    CONSTANT = 0  # a = p
    THRESHOLD = 1  # a = threshold
    CLIP = 2
    SIGMOIDAL = 3
    LOGISTIC = 4  # a = alpha, b = threshold


def accept_probability(kind: int, a: float, b: float, reward: float) -> float:
    """w(r) of the paper's Table 1; 0 for a reward that is not a number."""
    if math.isnan(reward):
        return 0.0
    if kind == PolicyKind.CONSTANT:
        return a
    if kind == PolicyKind.THRESHOLD:
        return float(reward >= a)
    if kind == PolicyKind.CLIP:
        return min(1.0, max(0.0, reward))
    if kind == PolicyKind.SIGMOIDAL:
        return reward / (1.0 + reward) if reward > 0 else 0.0
    z = -a * (reward - b)
    return 1.0 / (1.0 + math.exp(z)) if z < 700 else 0.0
