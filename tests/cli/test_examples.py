"""The examples run; tiny models stand in for the demo family."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.tiny_models import TinyModels

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _tiny_demo_family(monkeypatch: pytest.MonkeyPatch, tiny: TinyModels) -> None:
    monkeypatch.setattr("rsd_engine.demo.checkpoint_dir", lambda role: getattr(tiny, role))


def run(name: str, monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_all_examples_are_tested() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"offline_batch.py", "own_checkpoints.py", "streaming.py", "train_probe.py"}


def test_offline_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("offline_batch.py", monkeypatch)
    out = capsys.readouterr().out
    assert out.count(" steps: ") == 6
    assert "GFLOPs" in out


def test_own_checkpoints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: TinyModels
) -> None:
    models = [f"--{role}={folder}" for role, folder in tiny.sources().items()]
    run("own_checkpoints.py", monkeypatch, *models, "--max-tokens=40", "What is two and two?")
    out = capsys.readouterr().out
    assert "finished: " in out and "instead of (reward 0." in out


def test_streaming(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("streaming.py", monkeypatch)
    one, two = capsys.readouterr().out.split("two at once\n")
    assert "finished: " in one
    assert "A, target: " in two and "B, target: " in two


def test_train_probe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "probe.safetensors"
    run("train_probe.py", monkeypatch, str(file), "4", "2")
    out = capsys.readouterr().out
    assert file.exists()
    assert "rsd: " in out and "the probe kept" in out
