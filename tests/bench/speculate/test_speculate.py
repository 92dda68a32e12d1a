"""The benchmark of guesses on the demo family: what it prints, and its gate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.lib.timing import Mismatch
from bench.speculate import command, contenders, measure
from bench.speculate.contenders import WAYS, Ours
from rsd_engine import RequestOutput


def run(*more: str) -> int:
    return command.main(
        ["--problems", "1", "--runs", "1", "--threads", "1", "--tokens", "24", *more]
    )


def test_every_way_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--batch", "1") == 0
    table, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    found = json.loads(last)
    for mode, ways in WAYS.items():
        got = found[mode]["batch1"]
        assert set(got["ways"]) == set(ways)
        assert got["ratio"] == got["ways"][contenders.PICKED[mode]]["ratio"] > 0
        assert got["ways"]["none"]["ratio"] == 1
        assert got["ways"]["none"]["acceptance"] is None
        assert all(f"{mode:>8}  {name:>21}  " in table for name in ways)
    target = found["target"]["batch1"]
    assert target["ways"]["none"]["tokens_a_pass"] == 1
    assert 1 < target["ways"]["draft, 1"]["tokens_a_pass"] <= 2
    assert target["tokens_a_pass"] > 2
    assert found["rsd"]["batch1"]["vs_target"] > 0
    assert set(found["assisted"]) == {"batch1"}
    assert found["assisted"]["batch1"]["ratio"] > 0


def test_other_tokens_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ours.answer

    def wrong(self: Ours, questions: Any, mode: Any, way: Any) -> list[RequestOutput]:
        return right(self, questions[::-1] if way[0] == "ngram" else questions, mode, way)

    monkeypatch.setattr(Ours, "answer", wrong)
    monkeypatch.setattr(measure, "alternate", lambda *_, **__: pytest.fail("timed all the same"))
    with pytest.raises(Mismatch, match="batch 2, mode target, guesses: n-gram: sequence 0 differs"):
        run("--batch", "2", "--problems", "2")
