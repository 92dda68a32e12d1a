"""The memory benchmark on tiny models."""

from __future__ import annotations

import json

import pytest

from bench.loop import memory
from rsd_engine.engine.memory_report import MemoryReport, PageUse
from rsd_kernels.state.enums import Role


def test_what_is_said_and_what_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(
        ["--preset", "tiny", "--device", "cpu", "--slots", "2", "--prompt-tokens", "20",
         "--new-tokens", "96"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["measure"] == "resident memory"
    said = found["report"]
    assert sum(use["pages_held"] for use in said["pages"].values()) > 0
    assert 0 < said["page_waste"] < 1
    assert found["said"] < said["total"]
    assert found["peak_of_run"] >= found["held_after_start"]


def test_pages_that_were_never_used_are_left_out() -> None:
    use = PageUse(bytes_per_token=10, tokens_per_page=10, remainder=0, pages_held=3, tokens_held=5)
    report = MemoryReport(
        formats={Role.TARGET: {"Q8_0": 900, "float32": 100}}, pool=900, page_bytes=100,
        pages={Role.TARGET: use}, activations=10, state=20, log=30, tables=40,
    )  # fmt: skip
    assert report.total == 2000
    assert memory.touched_bytes(report) == 2000 - 900 + 300
    assert report.page_waste == pytest.approx(1 - 50 / 300)


def test_wrong_use() -> None:
    with pytest.raises(SystemExit):
        memory.main(["--slots", "0"])
