"""`rsd demo`: with tiny models for its shape, with the demo family for what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from tests.cli.conftest import Rsd

ROOT = Path(__file__).resolve().parents[2]
TAG = re.compile(r"^\[(draft \d\.\d\d|rejected \d\.\d\d|target)\] ")


def numbers_of(row: str, text: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.strip().startswith(row)]
    return line.strip().removeprefix(row).split()


def test_shows_every_step_and_sums_up(rsd: Rsd, model_args: list[str]) -> None:
    result = rsd("demo", "2", "--threshold=0.35", "--seed=1", *model_args)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for number, problem in enumerate(generate(1, "test", 2), start=1):
        assert f"Problem {number} of 2: {problem.question}" in lines
    tags = [match[1].split()[0] for line in lines if (match := TAG.match(line))]
    assert {"draft", "rejected", "target"} == set(tags)
    accepted, _, scored, _ = numbers_of("draft steps accepted", result.stdout)[:4]
    assert int(accepted) == tags.count("draft")
    assert int(scored) == tags.count("draft") + tags.count("rejected")
    assert numbers_of("right answers", result.stdout)[:3] == ["0", "of", "2"]
    seconds, alone, ratio, _ = numbers_of("seconds", result.stdout)
    assert float(seconds) > 0 and float(alone) > 0 and float(ratio) > 0
    for row in ("FLOPs, tokens written", "FLOPs, prompts too", "target tokens written"):
        assert len(numbers_of(row, result.stdout)) >= 2
    # models that know nothing must not look good
    assert re.search(r"^RSD is worse here in: .*FLOPs for tokens written", result.stdout, re.M)


def test_threshold_and_seed_decide(rsd: Rsd, model_args: list[str]) -> None:
    nothing_passes = rsd("demo", "1", "--threshold=1.5", *model_args).stdout
    assert numbers_of("draft steps accepted", nothing_passes)[0] == "0"
    all_pass = rsd("demo", "1", "--threshold=0", "--seed=4", *model_args).stdout
    assert numbers_of("draft steps accepted", all_pass)[3] == "(100%)"
    assert generate(4, "test", 1)[0].question in all_pass


def test_defaults_come_from_the_config(rsd: Rsd, model_args: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rsd.toml"
    path.write_text("[demo]\nproblems = 2\nthreshold = 1.5\n")
    assert "Problem 2 of 2" in rsd("demo", "--config", path, *model_args).stdout
    shown = rsd("demo", "1", "--config", path, *model_args).stdout
    assert "Problem 1 of 1" in shown
    assert numbers_of("draft steps accepted", shown)[0] == "0"
    path.write_text("[demo]\nproblems = 0\n")
    assert rsd("demo", "--config", path, *model_args).exit_code == 2


def test_says_that_the_models_are_missing(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(role: str) -> Path:
        raise FileNotFoundError(f"no demo checkpoint for the role {role!r}")

    monkeypatch.setattr("rsd_engine.demo.checkpoint_dir", absent)
    result = rsd("demo")
    assert result.exit_code == 1
    assert result.stderr == "error: no demo checkpoint for the role 'draft'\n"


def _has_checkpoints() -> bool:
    try:
        return all(checkpoint_dir(role).is_dir() for role in ("draft", "target", "prm"))
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _has_checkpoints(), reason="the demo checkpoints are not trained yet")
def test_five_problems_within_a_minute() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "2",
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "rsd_engine.cli", "demo", "5"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert seconds < 60
    tags = [match[1].split()[0] for line in done.stdout.splitlines() if (match := TAG.match(line))]
    assert tags.count("draft") >= 5
    assert tags.count("rejected") == tags.count("target")
    assert int(numbers_of("right answers", done.stdout)[0]) >= 3
