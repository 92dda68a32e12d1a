"""The device gives a reward the weight that the policy's own formula gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rsd_engine.steps.policies import Clip, Constant, Logistic, Policy, Sigmoidal, Threshold
from rsd_kernels.policy.formula import accept_probability


@pytest.mark.parametrize(
    "policy",
    [Constant(0.3), Threshold(0.7), Threshold(-1), Threshold(2), Clip(), Sigmoidal(),
     Logistic(6.0, 0.5), Logistic(5000.0, 0.5)],
    ids=str,
)  # fmt: skip
def test_the_device_weighs_as_the_host(policy: Policy) -> None:
    kind, a, b = policy.columns()
    rewards = [0.0, 1.0, 0.5, 0.7, -0.2, 1.3, math.nan, *(i / 37 for i in range(38))]
    for reward in (float(np.float32(r)) for r in rewards):
        found = accept_probability(kind, float(np.float32(a)), float(np.float32(b)), reward)
        assert found == pytest.approx(policy.weight(reward), abs=1e-6), reward
