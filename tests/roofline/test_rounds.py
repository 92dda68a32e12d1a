"""The limits of passes, rounds and speculation against sums done by hand."""

from __future__ import annotations

from dataclasses import astuple
from itertools import pairwise

import pytest

from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.passes import PassCost, pass_cost
from rsd_engine.roofline.rounds import (
    Setting,
    Triple,
    alone,
    break_even,
    flops_ratio,
    round_seconds,
    rsd,
    speculate,
)
from rsd_engine.roofline.shape import ModelShape

FAST = Device("x", bandwidth=1e3, flops=1e12, memory_bytes=1e9)  # only bytes count
SLOW = Device("y", bandwidth=1e12, flops=1e3, memory_bytes=1e9)  # only products count


def shape(body: int, head: int = 0, kv: int = 0, width: int = 0) -> ModelShape:
    return ModelShape(
        num_parameters=body + head,
        body_parameters=body,
        head_parameters=head,
        attention_width=width,
        kv_bytes_per_token=kv,
        bytes_per_parameter=2,
    )


def triple(draft: int = 50, target: int = 500, prm: int = 100) -> Triple:
    return Triple(shape(draft), shape(target), shape(prm))


def test_work_of_a_pass() -> None:
    """3 sequences of 5 rows over 7 tokens; 2 bytes a weight."""
    work = pass_cost(shape(100, 20, kv=8, width=6), seqs=3, rows=5, context=7)
    assert work.num_bytes == 2 * 120 + 3 * 7 * 8
    assert work.flops == 2 * 3 * (5 * 100 + 20) + 4 * 3 * 5 * 7 * 6


def test_the_slower_of_reading_and_multiplying_counts() -> None:
    device = Device("z", bandwidth=10, flops=100, memory_bytes=1)
    assert PassCost(20, 100).seconds(device) == 2
    assert PassCost(20, 300).seconds(device) == 3
    small = shape(100)
    cost = pass_cost(small, seqs=9, rows=9, context=9)
    assert cost.seconds(FAST) == 200 / 1e3
    assert cost.seconds(SLOW) == 2 * 81 * 100 / 1e3


def test_one_model_alone() -> None:
    """1,000 bytes at 1,000 bytes a second: a second a pass, one token a slot."""
    assert alone(shape(500), Setting(FAST, slots=1)) == 1
    assert alone(shape(500), Setting(FAST, slots=16)) == 16
    assert alone(shape(500), Setting(SLOW, slots=16)) == pytest.approx(1e3 / 1000)
    with_kv = Setting(FAST, slots=2, context=10)
    assert alone(shape(500, kv=50), with_kv) == pytest.approx(2 / (1 + 2 * 10 * 50 / 1e3))


def test_a_round_bound_by_reading() -> None:
    """Draft 0.1 s a pass, PRM 0.2, target 1; steps of 10 tokens, 3 of 4 kept."""
    parts = round_seconds(triple(), Setting(FAST, step_tokens=10), 0.75)
    assert parts.draft == pytest.approx(10 * 0.1)
    assert parts.score == pytest.approx(0.2)
    assert parts.catch_up == pytest.approx(0)  # in a pass that is made anyway
    assert parts.rewrite == pytest.approx(0.25 * 10 * 1)
    assert parts.total == pytest.approx(1.0 + 0.2 + 2.5)
    assert rsd(triple(), Setting(FAST, step_tokens=10), 0.75) == pytest.approx(10 / 3.7)
    assert rsd(triple(), Setting(FAST, slots=4, step_tokens=10), 0.75) == pytest.approx(40 / 3.7)


def test_a_round_bound_by_products() -> None:
    """A row costs the draft 0.1 s, the PRM 0.2, the target 1; half of the steps are kept.

    A round: the draft writes 10 and reads half a rewritten step, the PRM reads 11 and half a
    rewritten step, the target writes half a step and has half a kept one to read.
    """
    parts = round_seconds(triple(), Setting(SLOW, step_tokens=10), 0.5)
    assert parts.draft == pytest.approx(0.1 * (10 + 5))
    assert parts.score == pytest.approx(0.2 * (11 + 5.5))
    assert parts.rewrite == pytest.approx(5)
    assert parts.catch_up == pytest.approx(5)


def test_at_the_ends_of_acceptance() -> None:
    setting = Setting(SLOW, step_tokens=10)
    none = round_seconds(triple(), setting, 0.0)
    assert [none.catch_up, none.rewrite] == pytest.approx([0, 10])
    every = round_seconds(triple(), setting, 1.0)
    assert (every.catch_up, every.rewrite) == (0, 0)  # the target is never called
    assert [every.draft, every.score] == pytest.approx([1, 2.2])


def test_nothing_is_read_twice() -> None:
    """99 of 100 steps kept make 990 tokens to read, but the sequence has 100."""
    parts = round_seconds(triple(), Setting(SLOW, context=100, step_tokens=10), 0.99)
    assert parts.catch_up == pytest.approx(0.01 * (100 - 1))


def test_token_speculation_by_hand() -> None:
    """Draft 0.1, target 1: k = 2 at one half gives 1.75 tokens in 1.2 s, k = 3 1.875 in 1.3."""
    setting = Setting(FAST)

    def found(acceptance: float, setting: Setting) -> tuple[float, float]:
        return astuple(speculate(shape(50), shape(500), setting, acceptance))

    assert found(0.5, setting) == pytest.approx((2, 1.75 / 1.2))
    assert max(1.5 / 1.1, 1.875 / 1.3) < 1.75 / 1.2
    assert found(0.0, setting) == pytest.approx((0, 1))
    assert found(1.0, setting) == pytest.approx((32, 33 / 4.2))
    assert found(0.9, Setting(SLOW)) == pytest.approx((0, 1))  # every row costs: it cannot pay


def test_break_even_by_hand() -> None:
    """10 * 0.1 + 0.2 + (1 - a) * 10 = 10 / rate: a = 0.12 for the target's own rate."""
    setting = Setting(FAST, step_tokens=10)
    assert break_even(triple(), setting, 1.0) == pytest.approx(0.12)
    assert break_even(triple(), setting, 2.0) == pytest.approx(0.62)
    assert break_even(triple(), setting, 0.5) == 0.0
    assert break_even(triple(), setting, 9.0) is None  # 10 tokens take 1.2 s even if all are kept
    assert break_even(triple(draft=500), setting, 1.0) is None


@pytest.mark.parametrize("device", [FAST, SLOW, Device("z", 1e3, 3e3, 1)])
@pytest.mark.parametrize("slots", [1, 7])
def test_more_kept_steps_are_never_slower(device: Device, slots: int) -> None:
    setting = Setting(device, slots=slots, context=300, step_tokens=20)
    rates = [rsd(triple(), setting, a / 20) for a in range(21)]
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(rates))


def test_operations() -> None:
    """50 + 100 + 0.2 * 500 = 250 a token written; (1.2 * (50 + 1.1 * 100) + 500) a token read."""
    found = flops_ratio(triple(), 10, 0.8)
    assert found["generated"] == pytest.approx(500 / 250)
    assert found["all"] == pytest.approx(500 / (1.2 * 160 + 500))
    assert flops_ratio(triple(), 10, 1.0)["all"] == pytest.approx(500 / 160)


def test_bad_settings() -> None:
    for name in ("slots", "context", "step_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Setting(FAST, **{name: 0})
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="acceptance must be in"):
            round_seconds(triple(), Setting(FAST), share)
        with pytest.raises(ValueError, match="token_acceptance must be in"):
            speculate(shape(1), shape(2), Setting(FAST), share)
