"""`rsd generate` over a file, stopped and started again, writes what a run without stops writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from rsd_engine.cli.app import app
from tests.tiny_models import TinyModels

ROOT = Path(__file__).resolve().parents[2]
HAS_FAILED_LINES = 1  # exit code
INTERRUPTED = 130
BAD_LINES = ('{"prompt": ', '{"prompt": 7}', '{"prompt": "x", "params": {"temperature": -1}}')
LINES_FOR_A_STOP = 3


def questions(count: int) -> str:
    """Lines in every mode, conversations, several samples, and bad ones among them."""
    lines = [
        json.dumps(
            {
                "id": i,
                "prompt": f"the sum of two and {i}",
                "params": {"mode": ("rsd", "draft", "target")[i % 3], "n": 1 + (i % 5 == 4)},
            }
        )
        for i in range(count)
    ]
    for place, line in enumerate(BAD_LINES):
        lines.insert((place + 1) * count // 4, line)
    return "\n".join(lines)


def arguments(tiny: TinyModels, folder: Path, output: str) -> list[str]:
    """Answer the questions of a folder into one of its files."""
    models = [f"--{role}={path}" for role, path in tiny.sources().items()]
    return [
        "generate", *models,
        "--temperature=1", "--max-tokens=120", "--max-step-tokens=12", "--max-num-seqs=1",
        f"--input={folder / 'q.jsonl'}", f"--output={folder / output}",
    ]  # fmt: skip


class Run:
    """One process that answers the questions of a folder into one of its files."""

    def __init__(self, tiny: TinyModels, folder: Path, output: str) -> None:
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        self.output = folder / output
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rsd_engine.cli", *arguments(tiny, folder, output)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors

    def answers(self) -> list[bytes]:
        """The lines of the file but those of failed lines, which every run tries again."""
        lines = self.output.read_bytes().splitlines(keepends=True) if self.output.exists() else []
        return [line for line in lines if b'"outputs"' in line and line.endswith(b"\n")]

    def wait_for_answers(self, count: int) -> None:
        while self.process.poll() is None and len(self.answers()) < count:
            time.sleep(0.002)


def stop(run: Run, kind: signal.Signals, rng: Random) -> None:
    """Kills or interrupts a run at some moment: after some answers, or a kill while it starts."""
    if kind == signal.SIGKILL and rng.random() < 0.2:
        time.sleep(rng.random() * 3.0)
    else:
        run.wait_for_answers(len(run.answers()) + rng.randint(1, LINES_FOR_A_STOP))
        time.sleep(rng.random() * 0.05)
    children = children_of(run.process.pid)
    run.process.send_signal(kind)
    code, errors = run.end()
    assert code == (INTERRUPTED if kind == signal.SIGINT else -signal.SIGKILL), errors
    assert "Traceback" not in errors
    for child in children:
        wait_for_the_end(child)


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def wait_for_the_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} has outlived its run"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("seed", "kills", "interrupts"),
    [
        pytest.param(1, 1, 1, id="2 stops"),
        pytest.param(2, 20, 20, id="40 stops", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_stopped_runs_write_what_one_run_writes(
    tiny: TinyModels, tmp_path: Path, seed: int, kills: int, interrupts: int
) -> None:
    rng = Random(seed)
    stops = [signal.SIGKILL] * kills + [signal.SIGINT] * interrupts
    rng.shuffle(stops)
    (tmp_path / "q.jsonl").write_text(questions(LINES_FOR_A_STOP * len(stops) + 12))
    started = time.monotonic()
    whole_run = CliRunner().invoke(app, arguments(tiny, tmp_path, "whole.jsonl"))
    assert whole_run.exit_code == HAS_FAILED_LINES, whole_run.output
    progress = stop_all(tiny, tmp_path, stops, rng)
    code, errors = Run(tiny, tmp_path, "part.jsonl").end()
    assert code == HAS_FAILED_LINES, errors
    whole, part = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("whole", "part"))
    assert part == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part.jsonl", "q.jsonl", "whole.jsonl",
    ]  # fmt: skip
    print(json.dumps({"kills": kills, "interrupts": interrupts, "lines": whole.count(b"\n"),
                      "answers at the stops": progress,
                      "seconds": round(time.monotonic() - started, 1)}))  # fmt: skip


def stop_all(
    tiny: TinyModels, folder: Path, stops: Sequence[signal.Signals], rng: Random
) -> list[int]:
    """Starts a run again after every stop; answers stay. Returns how many there were each time."""
    before: list[bytes] = []
    progress = []
    for kind in stops:
        run = Run(tiny, folder, "part.jsonl")
        stop(run, kind, rng)
        answers = run.answers()
        assert answers[: len(before)] == before
        before = answers
        progress.append(len(answers))
    return progress
