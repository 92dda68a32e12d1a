"""The benchmark of shared beginnings on the demo family: what it prints, and its gate."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bench.lib.timing import Mismatch
from bench.prefix import command, measure
from bench.prefix.measure import APART, OFF, ON, TRANSFORMERS
from rsd_engine import RequestOutput


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some of the few-shot prompts come when others have been read."""
    monkeypatch.setattr(command, "SLOTS", 2)


def run() -> int:
    sizes = ["--samples=2", "--turns=2", "--shots=1", "--problems=3", "--tokens=6"]
    return command.main(["--quick", "--threads=1", "--decode-tokens=4", *sizes])


def test_what_it_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    table, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    found = json.loads(last)
    assert set(found["scenes"]) == {"samples", "chat", "few-shot"}
    for scene, modes in found["scenes"].items():
        for mode, figures in modes.items():
            ways = figures["ways"]
            assert (APART in ways) == (scene == "samples")
            assert (TRANSFORMERS in ways) == (mode == "target") == ("vs_transformers" in figures)
            assert all(f"{scene:8}  {mode:>6}  {way:>28}  " in table for way in ways)
            base = ways.get(APART, ways[OFF])
            assert figures["ratio"] == pytest.approx(
                base["seconds"][0] / ways[ON]["seconds"][0], rel=1e-4
            )
            # What is found is not read, and everything else is.
            assert all_read(ways[ON]) == all_read(ways[OFF])
            assert (ways[ON]["cached"] > 0) == (scene != "samples") and ways[OFF]["cached"] == 0
    samples = found["scenes"]["samples"]["target"]["ways"]
    assert samples[APART]["read"]["target"] > 1.5 * samples[ON]["read"]["target"]
    assert all(s > 0 for way in (ON, OFF) for s in found["overhead"]["seconds_a_pass"][way])
    assert "where nothing is found: " in table


def all_read(way: dict[str, Any]) -> int:
    return int(sum(way["read"].values()) + way["cached"])


def test_other_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = measure.play, 0

    def wrong(*given: Any) -> list[RequestOutput]:
        """Another reward from every second engine."""
        nonlocal calls
        calls += 1
        return [_spoiled(result) if calls % 2 else result for result in right(*given)]

    monkeypatch.setattr(measure, "play", wrong)
    monkeypatch.setattr(measure, "alternate", lambda *_, **__: pytest.fail("timed all the same"))
    with pytest.raises(Mismatch, match="samples, mode target: the steps of prompt .* differ"):
        run()


def _spoiled(result: RequestOutput) -> RequestOutput:
    [first, *others] = result.outputs
    steps = tuple(replace(step, reward=0.5) for step in first.steps)
    return replace(result, outputs=(replace(first, steps=steps), *others))
