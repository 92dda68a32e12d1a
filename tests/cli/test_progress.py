"""The bar on a terminal, and what is left of it elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rsd_engine import Metrics
from rsd_engine.cli import progress
from rsd_engine.outputs import RoleMetrics

DONE = Metrics(
    draft=RoleMetrics(tokens_generated=30), target=RoleMetrics(tokens_generated=10),
    steps_accepted=3, steps_rejected=1,
)  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    monkeypatch.setattr(progress, "make_console", lambda **_: console)
    with progress.Progress(total=4, done=1) as bar:
        bar.status("questions")
        bar.note("line 2: [red]not JSON[/red]\x1b[2J")
        bar.advance(None)
        bar.advance(DONE)
        bar.summary(DONE)
    return out.getvalue()


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run(monkeypatch, terminal=True)
    assert "3/4" in shown and "75% accepted" in shown
    assert "line 2: [red]not JSON[/red]�[2J" in shown
    assert "1 request in" in capsys.readouterr().err


def test_a_file_gets_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, terminal=False) == ""
    note, summary = capsys.readouterr().err.splitlines()
    assert note == "line 2: [red]not JSON[/red]�[2J"
    assert "40 tokens" in summary and "75% of draft steps accepted" in summary


def test_the_summary_says_what_is_odd_about_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    odd = Metrics(steps_rejected=32, nan_rewards=32)
    with progress.Progress(total=1, done=0) as bar:
        bar.advance(odd)
        bar.summary(odd)
    _, note = capsys.readouterr().err.splitlines()
    assert note.startswith("note: 32 of 32 rewards are NaN")
