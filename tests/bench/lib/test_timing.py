"""Medians, spreads, taking turns and the correctness gate."""

from __future__ import annotations

import time

import pytest
import torch

from bench.lib.timing import (
    Calls,
    Mismatch,
    Timing,
    alternate,
    alternate_calls,
    require_same_tokens,
    seconds_of,
)
from rsd_engine.roofline.measured import read_bandwidth


def test_median_spread_and_rates() -> None:
    timing = Timing((4.0, 1.0, 2.0))
    assert timing.median == 2.0
    assert timing.spread == 1.5
    assert timing.rates(8) == {"median": 4.0, "min": 2.0, "max": 8.0}
    assert Timing((1.0, 2.0)).median == 1.5


def test_no_runs_is_an_error() -> None:
    with pytest.raises(ValueError, match="seconds is empty"):
        Timing(())
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        alternate({"a": lambda: None}, runs=0)


def test_contenders_take_turns_after_the_warm_up() -> None:
    calls: list[str] = []
    found = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert [len(t.seconds) for t in found.values()] == [3, 3]
    assert list(found) == ["a", "b"]


def test_calls_are_counted_and_reset_before_every_run() -> None:
    said: list[str] = []

    def calls(name: str) -> Calls:
        return Calls(lambda i: said.append(f"{name}{i}"), reset=lambda: said.append("reset"))

    found = alternate_calls(
        {"a": calls("a"), "b": calls("b")}, device=torch.device("cpu"), copies=2, runs=3
    )
    one, two = ["reset", "a0", "a1"], ["reset", "b0", "b1"]
    assert said == (one + two) * 4  # once to warm up
    assert [len(timing.seconds) for timing in found.values()] == [3, 3]


def test_seconds_are_those_of_one_call() -> None:
    timing = alternate_calls(
        {"a": Calls(lambda _: time.sleep(0.002))}, device=torch.device("cpu"), copies=5, runs=1
    )["a"]
    assert 0.002 <= timing.median < 0.008


@pytest.mark.parametrize(("copies", "runs"), [(0, 1), (1, 0)])
def test_no_calls_is_an_error(copies: int, runs: int) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got {copies} and {runs}"):
        alternate_calls({"a": Calls(print)}, device=torch.device("cpu"), copies=copies, runs=runs)


@pytest.mark.gpu
def test_a_graph_takes_less_than_the_host() -> None:
    """And both take at least as long as the memory they touch."""
    device, size = torch.device("cuda"), 2**26
    data = torch.ones(4, size // 4, device=device)
    contenders = {
        "graph": Calls(lambda i: data[i].add_(1)),
        "host": Calls(lambda i: data[i].add_(1), captured=False),
    }
    found = alternate_calls(contenders, device=device, copies=4, runs=5)
    bandwidth = read_bandwidth(device)
    assert bandwidth > 1e11
    for timing in found.values():
        assert size / bandwidth < timing.median < 100 * size / bandwidth


def test_the_gate_lets_equal_tokens_pass() -> None:
    require_same_tokens([[1, 2], [3]], [(1, 2), (3,)], "batch 2")


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([[1, 2, 3]], [[1, 5, 3]], "sequence 0 differs at token 1: ours [2, 3], theirs [5, 3]"),
        ([[1], [1, 2]], [[1], [1]], "sequence 1 differs at token 1: ours [2], theirs []"),
        ([[1]], [[1], [2]], "1 sequences of ours, 2 of theirs"),
    ],
)
def test_the_gate_stops_the_rest(
    ours: list[list[int]], theirs: list[list[int]], message: str
) -> None:
    with pytest.raises(Mismatch) as caught:
        require_same_tokens(ours, theirs, "greedy")
    assert message in str(caught.value)


def test_one_call_takes_time() -> None:
    assert seconds_of(lambda: sum(range(1000))) > 0
