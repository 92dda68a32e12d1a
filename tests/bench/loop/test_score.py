"""The benchmark of `Engine.score`: its figures, and that a wrong reward stops it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bench.lib.timing import Mismatch
from bench.loop import score
from rsd_engine import Engine
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.outputs import ScoredSolution


def test_what_it_reports(capsys: pytest.CaptureFixture[str]) -> None:
    score.main(["--problems=6", "--runs=1", "--device=cpu"])
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert found["bench"] == "score" and found["solutions"] == 6
    assert 6 < found["compared"] <= found["steps"]
    once, each, again = found["ways"].values()
    assert once["tokens_read"] == each["tokens_read"] < again["tokens_read"]
    assert all(name in output for name in found["ways"])


@pytest.mark.parametrize("wrong", ["reward", "tokens"])
def test_a_difference_stops_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models: dict[str, Any] = {role: checkpoint_dir(role) for role in ROLES}
    with Engine(**models, device="cpu", max_num_seqs=4, max_model_len=512) as engine:
        solved = score.solve(engine, 3)
        assert score.check(engine, solved) > 0
        right = engine.score

        def spoiled(questions: list[str], steps: list[list[str]]) -> list[ScoredSolution]:
            found = right(questions, steps)
            if wrong == "tokens":
                return [replace(one, tokens_read=one.tokens_read + 1) for one in found]
            worse = [replace(step, reward=step.reward + 0.001) for step in found[-1].steps]
            return [*found[:-1], replace(found[-1], steps=tuple(worse))]

        monkeypatch.setattr(engine, "score", spoiled)
        with pytest.raises(Mismatch, match="in the loop" if wrong == "reward" else "were read"):
            score.check(engine, solved)
