"""What the documents of the integrations show is what happens."""

from __future__ import annotations

import re
import tomllib
from inspect import Parameter, signature
from typing import Any

import pytest
import yaml

from rsd_engine.integrations.transformers import reward_guided
from tests.docs.documents import ROOT, Document, document

FOLDER = ROOT / "examples" / "custom_generate"


def run_programs(shown: Document) -> None:
    """All blocks, one after the other, in one process."""
    names: dict[str, Any] = {}
    for number, code in enumerate(shown.blocks("python")):
        exec(compile(code, f"{shown.name}, block {number}", "exec"), names)


def test_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    run_programs(document("docs/lm_eval.md"))
    accuracy, _ = capsys.readouterr().out.split("\n", 1)
    assert float(accuracy) >= 0.5


def test_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    run_programs(document("docs/transformers.md"))
    assert r"\boxed{18}" in capsys.readouterr().out


def test_the_folder_for_the_hub_has_its_layout() -> None:
    """Front matter that the hub knows it by, and the project's name as its requirement."""
    _, front, _ = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "transformers" and told["tags"] == ["custom_generate"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (FOLDER / "custom_generate/requirements.txt").read_text() == f"{project['name']}\n"
    assert (FOLDER / "custom_generate/generate.py").is_file()


def test_the_arguments_are_those_of_the_code() -> None:
    rows = document("docs/transformers.md").table_after("## Arguments")
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    parameters = signature(reward_guided).parameters.values()
    assert told == {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
