"""Ctrl-C, for real: a process, a signal, and the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
COUNT = 36


def command(model_args: list[str], folder: Path, output: str) -> list[str]:
    return [
        sys.executable, "-m", "rsd_engine.cli", "generate", *model_args,
        "--temperature=1", "--max-tokens=120", "--max-step-tokens=12", "--max-num-seqs=1",
        f"--input={folder / 'q.jsonl'}", f"--output={folder / output}",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def finished(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def interrupt_after(args: list[str], output: Path, count: int) -> tuple[int, str]:
    """Presses Ctrl-C once `count` more results are on disk."""
    wanted = finished(output) + count
    process = subprocess.Popen(args, env=environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and finished(output) < wanted:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow  # `tests/stress/test_stops.py` presses it once in the fast suite
def test_interrupt_and_resume_give_what_one_run_gives(
    model_args: list[str], tmp_path: Path
) -> None:
    write_jsonl(
        tmp_path / "q.jsonl",
        [{"id": f"q{i}", "prompt": f"the sum of two and {i}"} for i in range(COUNT)],
    )
    whole = command(model_args, tmp_path, "whole.jsonl")
    subprocess.run(whole, env=environment(), check=True, capture_output=True, timeout=120)
    part = tmp_path / "part.jsonl"
    for expected in (5, 10):
        before = part.read_bytes() if part.exists() else b""
        code, errors = interrupt_after(command(model_args, tmp_path, "part.jsonl"), part, 5)
        assert code == 130, errors
        assert "Traceback" not in errors
        assert "give the same command to resume" in errors
        records = read_jsonl(part)  # whole lines only
        assert expected <= len(records) < COUNT
        assert part.read_bytes().startswith(before)
    subprocess.run(
        command(model_args, tmp_path, "part.jsonl"),
        env=environment(), check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    ours, theirs = read_jsonl(part), read_jsonl(tmp_path / "whole.jsonl")
    assert [record["id"] for record in ours] == [f"q{i}" for i in range(COUNT)]
    assert [without_rewards(r) for r in ours] == [without_rewards(r) for r in theirs]
    # Requests shared their passes with others, so rewards may differ in the last decimal.
    assert all(abs(a - b) < 2e-4 for a, b in zip(rewards(ours), rewards(theirs), strict=True))


def without_rewards(record: dict[str, Any]) -> dict[str, Any]:
    """A record but for its rewards."""
    kept = dict(record)
    kept["outputs"] = [
        {**output, "steps": [_bare(step) for step in output["steps"]]}
        for output in record["outputs"]
    ]
    return kept


def _bare(step: dict[str, Any]) -> dict[str, Any]:
    rejected = step["rejected"] and {**step["rejected"], "reward": 0}
    return {**step, "reward": step["reward"] is None, "rejected": rejected}


def rewards(records: list[dict[str, Any]]) -> list[float]:
    steps = [s for record in records for output in record["outputs"] for s in output["steps"]]
    found = [s["reward"] for s in steps if s["reward"] is not None]
    return found + [s["rejected"]["reward"] for s in steps if s["rejected"]]
