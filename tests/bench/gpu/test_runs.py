"""First contact and the run after it: both on a CPU, in the processes that a GPU would see."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import command, first
from bench.gpu.child import IMPORTED_AHEAD, ROOT
from bench.gpu.parts import build_parts, early_is_proven, first_parts, second_parts

BOTH = ["--dry-run", "--commit", "0123abc"]
LAST_LETTERS = 12_000  # of the output, that a machine in a data centre may give back


@pytest.fixture(scope="module")
def contact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What first contact leaves."""
    folder = tmp_path_factory.mktemp("gpu") / "first"
    archive = ["--archive", str(folder.with_suffix(".tar.gz"))]
    assert first.main([*BOTH, "--output", str(folder), *archive]) == 0
    return folder


def result(folder: Path, part: str) -> Any:
    return json.loads((folder / f"{part}.json").read_text())["result"]


def test_first_contact(contact: Path) -> None:
    summary = json.loads((contact / "summary.json").read_text())
    assert list(summary["parts"]) == [part.name for part in first_parts()]
    assert {found["status"] for found in summary["parts"].values()} == {"passed"}
    assert summary["machine"]["commit"] == "0123abc"
    assert result(contact, "machine")["bandwidth_bytes_per_second"] > 0
    executors = result(contact, "executors")
    assert executors["equal"] is True and executors["beside_the_cpu"] is None
    assert executors["executors"]["eager"]["rejected"] > 0
    assert result(contact, "decode")["whole_model"]["tiny"]["share_of_bandwidth"] > 0
    assert result(contact, "decode")["ops"] == {}
    assert result(contact, "profile")["passes"]["tiny"]["kernels"]
    assert result(contact, "overlap")["works"] is True
    judged = {bar["name"]: bar for bar in summary["bars"]}
    assert judged["rollback, 16 slots"]["found"] > 0
    with tarfile.open(contact.with_suffix(".tar.gz")) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert names >= {"summary.json", "executors.log", "kernels_tiny.txt", "trace_tiny.json"}


def test_the_second_run_goes_on_from_there(
    contact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--first", str(contact), "--output", str(tmp_path / "second")]
    assert command.main([*BOTH, *there]) == 0
    said = capsys.readouterr().out
    summary = json.loads(said.splitlines()[-1])
    parts = summary["parts"]
    assert [name for name, found in parts.items() if found.get("resumed")] == [
        "overlap", "decode", "control", "conditional",
    ]  # fmt: skip
    assert {found["status"] for found in parts.values()} == {"passed"}
    proven = summary["early_is_proven"]
    assert proven == (result(contact, "overlap")["times_faster"] > 1)
    early = [name for name, found in parts.items() if found.get("early")]
    may_be = ["device_loop", "weight_formats", "batching", "step_latency"]
    assert early == (may_be if proven else [])
    written = json.loads((tmp_path / "second" / "summary.json").read_text())
    judged = {bar["name"]: bar for bar in written["bars"]}
    assert judged["rollback, 16 slots"]["found"] > 0
    assert judged["host launches a step, device loop"]["met"] is not None
    assert len(said) < 2 * LAST_LETTERS and len(said.splitlines()[-1]) < LAST_LETTERS / 3


def test_the_parts() -> None:
    names = [part.name for part in first_parts()]
    assert names[0] == "machine" and names[-1] == "overlap"
    assert sum(part.limit for part in first_parts()) < 260
    unknown = [part.name for part in second_parts({})]
    assert unknown[0] == "executor_checks" and unknown[-2:] == ["overlap", "sanitize"]
    works = {"overlap": {"result": {"works": True}}}
    assert [part.name for part in second_parts(works)][1] == "overlap"
    assert [part.name for part in second_parts({"overlap": {"result": None}})] == unknown
    for part in (*first_parts(), *build_parts(False, False), *second_parts({})):
        assert not part.missing and part.least <= part.limit
    assert build_parts(True, True) == ()
    assert [part.name for part in build_parts(False, True)] == ["triton"]
    assert [part.name for part in build_parts(True, False)] == ["cuda"]


def test_when_kernels_start_early() -> None:
    def overlap(**found: Any) -> list[dict[str, Any]]:
        return [{"part": "machine", "result": None}, {"part": "overlap", "result": found or None}]

    assert early_is_proven(overlap(works=True, times_faster=1.2))
    assert not early_is_proven(overlap(works=True, times_faster=0.9))
    assert not early_is_proven(overlap(works=False, why="GraphError"))
    assert not early_is_proven(overlap())
    assert not early_is_proven([])


@pytest.mark.slow  # the imports take three seconds
def test_nothing_imported_ahead_looks_for_a_gpu() -> None:
    """A process that is forked after CUDA was used cannot use it."""
    code = (
        "import importlib, torch\n"
        "def used(*_): raise SystemExit('CUDA is used')\n"
        "for name in ('is_available', 'device_count', 'current_device', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, used)\n"
        f"for name in {IMPORTED_AHEAD}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("run", [first, command])
def test_needs_a_gpu(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--output", str(tmp_path / "out")]) == 2
    assert "there is no CUDA device here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
