"""The command line as documents show it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rsd_engine.cli.app import app


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


class Shell:
    """Runs `rsd` in this process."""

    def rsd(self, *arguments: str) -> str:
        """What it prints; it must succeed."""
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture
def shell() -> Shell:
    return Shell()
