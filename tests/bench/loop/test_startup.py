"""The benchmark of a start: a tiny model in CI, half a billion parameters in the slow suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.loop import startup

STAGES = [
    "start Python", "import rsd_engine", "read configs and tokenizers", "read weights", "build",
    "warm up and capture", "first token",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    startup.main(arguments)
    output = capsys.readouterr().out
    return output, json.loads(output.splitlines()[-1])["starts"]


def test_every_stage_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    output, [start] = run(capsys, "--preset=tiny")
    facts = start["facts"]
    assert list(facts["stages"]) == STAGES
    assert all(seconds > 0 for seconds in facts["stages"].values())
    assert sum(facts["stages"].values()) <= facts["seconds"] * 1.001
    assert facts["max_model_len"] == 4096 and facts["num_tokens"] == 1
    assert all(stage in output for stage in STAGES)


def test_a_start_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho MemoryError: too large >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(startup.sys, "executable", str(python))
    with pytest.raises(RuntimeError, match="did not start: MemoryError: too large$"):
        startup._start("as it is", tmp_path)


def test_the_page_cache_is_filled_by_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_free_bytes", lambda: 3_000_000)
    startup.fill_page_cache(tmp_path / "zeros")
    assert (tmp_path / "zeros").stat().st_size == 3_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_a_billion_parameters_start_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """On 24 GB, also while the page cache fills them."""
    _, starts = run(capsys, "--full-page-cache")
    assert [start["page_cache"] for start in starts] == ["as it is", "full"]
    # How much the kernel keeps free is its own affair; most of what is available is not.
    assert 2 * starts[1]["free"] < starts[1]["available"]
    for start in starts:
        assert start["facts"]["max_model_len"] == 32768
        assert start["facts"]["num_tokens"] == 1
