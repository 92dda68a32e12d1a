"""What `docs/inspect.md` shows is what the command prints, as on a CPU with the CPU library."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rsd_engine.cli.app import app
from rsd_engine.cli.inspect.report import to_dict
from rsd_engine.cli.inspect.run import InspectOptions, run_inspection
from rsd_kernels.cpu import ops as cpu_ops
from tests.docs.documents import ROOT, document
from tests.tiny_models import TinyModels, make_tiny_models

INSPECT = document("docs/inspect.md")


@pytest.fixture(autouse=True)
def _with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "available", lambda: True)


def check(heading: str) -> None:
    """The block after a heading, with the command on its first line or lines."""
    [block] = re.findall(r"```\n\$ rsd (.*?)\n```", INSPECT.text.partition(heading)[2], re.S)[:1]
    command, shown = re.split(r"(?<!\\)\n", block, maxsplit=1)
    words = shlex.split(command.replace("\\\n", " "))
    done = CliRunner().invoke(app, [*words, "--device=cpu"])
    assert done.stdout.strip() == shown.strip()
    assert done.exit_code == ("problem: " in shown)


def test_the_demo_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check("## The demo family")


def test_the_tiny_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_tiny_models(tmp_path / "tiny", own_prm_tokenizer=True)
    monkeypatch.chdir(tmp_path)
    check("## When something does not fit")


@pytest.mark.slow
def test_smollm2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.models.gguf_files import find_smollm2

    file = find_smollm2()
    (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    check("## A GGUF file")


def test_the_keys(tmp_path: Path) -> None:
    tiny = make_tiny_models(tmp_path)
    found = to_dict(run_inspection(options(tiny)))
    for keys, heading in ((set(found), "`--json` prints"), (set(found["models"][0]), "A model:")):
        rows = INSPECT.table_after(heading)
        assert {key for row in rows for key in re.findall(r"`(\w+)`", row[0])} == keys


def test_the_subjects(tmp_path: Path) -> None:
    tiny = make_tiny_models(tmp_path)
    (tiny.prm / "config.json").write_text("{}")
    (tiny.draft / "model.safetensors").unlink()
    found = {f.subject for f in run_inspection(options(tiny)).findings}
    shutil.rmtree(tmp_path)
    tiny = make_tiny_models(tmp_path)
    found |= {f.subject for f in run_inspection(options(tiny)).findings}
    alone = replace(options(tiny), named={"target": str(tiny.target)}, quantization={"prm": "int8"})
    found |= {f.subject for f in run_inspection(alone).findings}
    told = {row[0].strip("`") for row in INSPECT.table_after("## What is checked")}
    assert found == told


def options(tiny: TinyModels) -> InspectOptions:
    return InspectOptions(
        named={role: str(folder) for role, folder in tiny.sources().items()},
        others=(),
        revision=None,
        device="cpu",
        dtype=None,
        memory_bytes=2**32,
        max_num_seqs=None,
        max_model_len=None,
        gpu_memory_utilization=None,
    )
