"""The comparison of scorers: each solves problems with a threshold that separates best."""

from __future__ import annotations

import json

import pytest

from bench.compare import effect, scorers
from bench.compare.step_auc import best_threshold


@pytest.mark.parametrize(
    ("right", "wrong", "kept", "left"),
    [
        ([0.9, 0.8], [0.1, 0.3], 0.8, 0.3),  # between the two kinds
        ([0.9, 0.2, 0.8], [0.1, 0.3, 0.3], 0.8, 0.3),  # one right step is given up
        ([0.5], [], 0.5, None),  # nothing to separate
    ],
)
def test_the_best_threshold_separates_right_from_wrong(
    right: list[float], wrong: list[float], kept: float, left: float | None
) -> None:
    found = best_threshold(right, wrong)
    assert found <= kept
    assert left is None or found > left


def test_every_scorer_is_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "MAX_TOKENS", 40)
    counts = ["--problems", "3", "--tuning", "3", "--training", "4", "--slots", "3"]
    assert scorers.main([*counts, "--threads", "1"]) == 0
    table, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    found = json.loads(last)
    assert set(found["alone"]) == {"draft", "target"}
    assert len(found["scorers"]) == 6
    for name, figures in found["scorers"].items():
        assert name in table
        assert 0 <= figures["accuracy"] <= 1
        assert figures["flops_ratio"]["all"] > 0
        assert 0 <= figures["acceptance"] <= 1
    assert found["scorers"]["reward model"]["auc"] is None or (
        found["scorers"]["reward model"]["auc"] > 0.9
    )
