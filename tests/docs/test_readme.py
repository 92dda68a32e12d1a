"""The README is short, its commands are those that others rely on, and its examples are true."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from rsd_engine.demo import checkpoint_dir
from tests.docs.conftest import Shell
from tests.docs.documents import document

README = document("README.md")
CHECKPOINTS = {
    "Qwen/Qwen2.5-Math-1.5B-Instruct": "draft",
    "Qwen/Qwen2.5-Math-7B-Instruct": "target",
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "prm",
}
_ENVIRONMENT = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "


def test_it_is_short() -> None:
    assert len(README.text.splitlines()) <= 150


def test_the_two_commands() -> None:
    """To try it, and to develop it: both are copied out of here by people and programs."""
    found = README.blocks("bash")
    assert f"{_ENVIRONMENT}. && rsd demo 5\n" in found
    assert f'{_ENVIRONMENT}".[dev]" && pytest\n' in found


def test_the_question_to_the_demo_family(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    block = README.text.partition("$ rsd generate ")[2].partition("```")[0]
    command, _, shown = block.partition("\n[")
    monkeypatch.chdir(checkpoint_dir("draft").parent)
    words = shlex.split(command.replace("\\\n", ""))
    assert shell.rsd("generate", *words, "--device=cpu") == f"[{shown}"


def test_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Run as it stands, but with the demo family in place of models that need a download."""
    [code] = README.blocks("python")
    for hub_id, role in CHECKPOINTS.items():
        assert code.count(hub_id) == 1
        code = code.replace(hub_id, str(checkpoint_dir(role)))
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    names["engine"].close()
    assert capsys.readouterr().out.startswith(("draft ", "target "))
