"""The five weighting functions of the paper's Table 1."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_engine.steps.policies import (
    Clip,
    Constant,
    Logistic,
    Policy,
    Sigmoidal,
    Threshold,
    parse_policy,
)
from rsd_kernels.policy.formula import PolicyKind

ALL: list[Policy] = [Constant(0.3), Threshold(), Clip(), Sigmoidal(), Logistic(10.0, 0.7)]


@pytest.mark.parametrize(
    ("policy", "reward", "weight"),
    [
        (Constant(0.3), 0.9, 0.3),
        (Threshold(0.7), 0.7, 1.0),
        (Threshold(0.7), 0.6999, 0.0),
        (Threshold(1.5), 1.0, 0.0),
        (Threshold(0.0), 0.0, 1.0),
        (Threshold(-math.inf), 0.0, 1.0),
        (Clip(), 0.4, 0.4),
        (Clip(), -2.0, 0.0),
        (Clip(), 3.0, 1.0),
        (Sigmoidal(), 1.0, 0.5),
        (Sigmoidal(), 0.25, 0.2),
        (Sigmoidal(), -3.0, 0.0),
        (Sigmoidal(), math.inf, 1.0),
        (Logistic(10.0, 0.7), 0.7, 0.5),
        (Logistic(10.0, 0.7), 0.8, 1.0 / (1.0 + math.exp(-1.0))),
        (Logistic(1e6, 0.7), 0.0, 0.0),
        (Logistic(1e6, 0.7), 1.0, 1.0),
    ],
)
def test_weight(policy: Policy, reward: float, weight: float) -> None:
    assert policy.weight(reward) == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_a_reward_that_is_not_a_number_is_never_kept(policy: Policy) -> None:
    assert policy.weight(math.nan) == 0.0


@given(st.sampled_from(ALL), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_weights_are_probabilities_and_grow_with_the_reward(
    policy: Policy, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    assert 0.0 <= policy.weight(low) <= policy.weight(high) <= 1.0


def test_threshold_compares_as_the_device_does() -> None:
    reward = 0.699999988079071  # 0.7 in float32, below 0.7 in float64
    assert Threshold(0.7).weight(reward) == 1.0


def test_columns() -> None:
    assert [policy.columns() for policy in ALL] == [
        (PolicyKind.CONSTANT, 0.3, 0.0),
        (PolicyKind.THRESHOLD, 0.7, 0.0),
        (PolicyKind.CLIP, 0.0, 0.0),
        (PolicyKind.SIGMOIDAL, 0.0, 0.0),
        (PolicyKind.LOGISTIC, 10.0, 0.7),
    ]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Constant(1.1), "p"),
        (lambda: Constant(-0.1), "p"),
        (lambda: Constant(math.nan), "p"),
        (lambda: Threshold(math.nan), "threshold"),
        (lambda: Threshold("0.7"), "threshold"),  # type: ignore[arg-type]
        (lambda: Threshold(True), "threshold"),
        (lambda: Logistic(0.0, 0.7), "alpha"),
        (lambda: Logistic(math.inf, 0.7), "alpha"),
        (lambda: Logistic(1.0, math.inf), "threshold"),
    ],
)
def test_bad_numbers_are_refused_by_name(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("threshold:0.7", Threshold(0.7)),
        ("threshold", Threshold(0.7)),
        ("constant:0.5", Constant(0.5)),
        ("clip", Clip()),
        ("sigmoidal", Sigmoidal()),
        ("logistic:10:0.7", Logistic(10.0, 0.7)),
    ],
)
def test_parse(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text", ["", "binary", "threshold:x", "constant", "clip:1", "logistic:10", "constant:2"]
)
def test_parse_names_the_policy_it_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=f"policy = '{text}'"):
        parse_policy(text)
