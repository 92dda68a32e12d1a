"""What the README shows of the demo family is what it does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rsd_engine.demo import checkpoint_dir
from tests.cli.conftest import Rsd

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_question_to_the_demo_family(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text(encoding="utf-8")
    block = text.partition("$ rsd generate ")[2].partition("```")[0]
    command, _, shown = block.partition("\n[")
    monkeypatch.chdir(checkpoint_dir("draft").parent)
    result = rsd("generate", *shlex.split(command.replace("\\\n", "")), "--device=cpu")
    assert result.exit_code == 0
    assert result.stdout == f"[{shown}"
