"""What `docs/quantization.md` shows is what happens."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path

import pytest

from rsd_kernels.formats.formats import FORMATS
from tests.docs.conftest import Shell
from tests.docs.documents import document

PAGE = document("docs/quantization.md")


def test_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("rsd_engine"), "level", logging.WARNING)
    [code] = PAGE.blocks("python")
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out == "Q8_0\n"


def test_what_fits(shell: Shell) -> None:
    models = ("--draft=qwen2.5-7b", "--target=qwen2.5-72b", "--prm=qwen2.5-math-prm-7b")
    for weights, gigabytes, *fits in PAGE.table_after("The paper's largest triple"):
        for gpu, told in zip(("h100", "h200"), fits, strict=True):
            word = [f"--quantization={weights}"] if weights != "bfloat16" else []
            found = shell.rsd("plan", *models, f"--gpu={gpu}", *word, "--json")
            memory = json.loads(found)["memory"]
            assert gigabytes == f"{sum(memory['weights'].values()) / 1e9:.1f}"
            number = memory["sequences"]["4096"]
            assert told == (f"{number} sequences" if number else "does not fit")


def test_the_plan_of_a_cpu(shell: Shell) -> None:
    _, _, rest = PAGE.text.partition("$ rsd plan ")
    command, shown = re.split(r"(?<!\\)\n", rest.partition("\n```")[0], maxsplit=1)
    found = shell.rsd("plan", *shlex.split(command.replace("\\\n", " ")))
    assert found.strip() == shown.strip()


def test_the_formats_that_a_cpu_reads() -> None:
    rows = PAGE.table_after("## What is used as it is stored")
    [blocks] = [row[0] for row in rows if row[1].startswith("as stored, where")]
    told = blocks.removeprefix("GGUF: ").split(", ")
    assert told == [name for name, form in FORMATS.items() if form.dtype is None]
