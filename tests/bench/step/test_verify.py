"""Passes that verify guesses are measured, if they do what they should."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from bench.kernels.attention_cases import last_rows
from bench.kernels.setting import TINY, Setting
from bench.lib.timing import Mismatch, Timing
from bench.step import verify


def test_every_pass_beside_one_that_decodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def timed(contenders: dict[str, Any], **_: object) -> dict[str, Timing]:
        return {name: Timing((1.0 + int(name) / 100,)) for name in contenders}

    monkeypatch.setattr(verify, "alternate_calls", timed)
    assert verify.main(["--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["failed"] == []
    one, four = (found["models"]["tiny"][slots] for slots in ("1", "4"))
    assert one["decode_us"] == 1e6
    assert {k: entry["times_decode"] for k, entry in one["guesses"].items()} == pytest.approx(
        {"1": 1.01, "2": 1.02, "4": 1.04, "8": 1.08}
    )
    # Rows of the bodies of a graph.
    assert [entry["rows"] for entry in one["guesses"].values()] == [4, 4, 16, 16]
    assert [entry["rows"] for entry in four["guesses"].values()] == [16, 16, 64, 64]


def test_the_rows_of_a_pass() -> None:
    table = torch.tensor([[3, 5, 0], [2, 1, 4]], dtype=torch.int32)
    batch = last_rows(table, 9, 4, rows_each=2, padded_to=6)
    assert batch.position.tolist() == [7, 8, 7, 8, 0, 0]
    assert batch.page.tolist() == [5, 0, 1, 4, -1, -1]
    assert batch.offset.tolist() == [3, 0, 3, 0, 0, 0]
    assert batch.seq_start.tolist() == batch.seq_place.tolist() == [0, 2, 4]
    assert batch.place_row_end.tolist() == [1, 2, 3, 4]
    assert batch.place_position.tolist() == [8, 9, 8, 9]
    assert batch.seq_kv_len.tolist() == [9, 9]


def test_what_keeps_no_right_guess_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify._Pass, "guess_right", lambda self: None)
    with pytest.raises(Mismatch, match="1 right guesses and a token more became"):
        verify.measure(Setting.tiny(), TINY["tiny"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verify.main([])
    assert "no CUDA device here; --dry-run" in capsys.readouterr().err
