"""`rsd serve` refuses what it cannot use before it loads anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rsd_engine.cli.app import app

MODELS = ["--draft=nowhere/draft"]


def refused(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["serve", *arguments])
    assert found.exit_code == 2
    return found.output


def test_models_and_keys(tmp_path: Path) -> None:
    assert "no model is given" in refused()
    empty = tmp_path / "keys"
    empty.write_text("\n \n")
    assert "has no key" in refused(*MODELS, f"--api-key-file={empty}")
    assert "cannot read" in refused(*MODELS, f"--api-key-file={tmp_path / 'none'}")
    assert "--port" in refused(*MODELS, "--port=70000")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("rsd_engine.server")]:
        monkeypatch.delitem(sys.modules, name)
    assert "install rsd-engine[server]" in refused(*MODELS)
