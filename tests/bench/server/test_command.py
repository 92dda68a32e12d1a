"""The server beside its engine, on a few requests; and how the figures are made of runs."""

from __future__ import annotations

import json

import pytest

from bench.lib.timing import Mismatch
from bench.server.command import check_same, main, percentile, ratio


def test_ratio_compares_neighbours() -> None:
    assert ratio([1.0, 4.0, 1.0], [2.0, 4.0, 1.0]) == 1.0
    assert ratio([9.0], [10.0]) == pytest.approx(0.9)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)
    assert percentile([3.0], 99) == 3.0


def test_other_texts_are_not_timed() -> None:
    with pytest.raises(Mismatch, match="request 1"):
        check_same({"one": lambda: ["a", "b"], "other": lambda: ["a", "c"]})


@pytest.mark.slow
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests=6", "--slots=2", "--runs=1"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["ways"]) == {"Engine.generate", "server, whole", "server, streamed"}
    assert (
        0 < figures["first_step_seconds"]["1"]["p50"] <= figures["first_step_seconds"]["1"]["p99"]
    )
