"""Steps with and without colour."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from rsd_engine import Candidate, StepEvent
from rsd_engine.cli.show import StepView, is_plain, visible


def shown(*, terminal: bool, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=width,
        color_system="standard" if terminal else None,
    )  # fmt: skip
    view = StepView(console)
    view.legend()
    view.step("draft", 0.934, "She has 3 [red]apples[/red].\n\n")
    view.step("rejected", 0.214, "3 + 4 = 8.\n\n")
    view.step("target", None, "3 + 4 = 7.\n\n")
    view.step("draft", None, "")
    view.step("rejected", float("nan"), "?")
    view.lost([Candidate("3 + 4 = 9.\n\n", (1,), "draft", 0.5, score=-3.0)])
    return out.getvalue()


def test_without_a_terminal_words_say_who_wrote() -> None:
    assert shown(terminal=False).splitlines() == [
        "[draft 0.93] She has 3 [red]apples[/red].",
        "[rejected 0.21] 3 + 4 = 8.",
        "[target] 3 + 4 = 7.",
        "[draft] (end of text)",
        "[rejected] ?",
        "[lost 0.50] 3 + 4 = 9.",
    ]


def test_plain_lines_are_never_wrapped() -> None:
    assert shown(terminal=False, width=20) == shown(terminal=False)


def test_a_terminal_gets_colours_and_rejected_steps_struck_through() -> None:
    lines = [line.rstrip() for line in shown(terminal=True).splitlines()]
    assert "accepted draft step" in lines[0] and "reward" in lines[0]
    assert "\x1b[32mShe has 3 [red]apples[/red]." in lines[1] and "draft 0.93" in lines[1]
    assert "\x1b[9;31m3 + 4 = 8." in lines[2] and "rejected 0.21" in lines[2]
    assert "\x1b[33m3 + 4 = 7." in lines[3]
    assert not any(line.startswith("[") for line in lines)


def test_no_color_on_a_terminal_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_plain(Console(force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert is_plain(Console(force_terminal=True))


def test_narrow_terminals_wrap_inside_the_column() -> None:
    lines = shown(terminal=True, width=40).splitlines()
    assert max(len(line) for line in lines[3:]) < 70
    assert "apples" in "".join(lines)


@pytest.mark.parametrize("width", [8, 13, 20])
def test_the_narrowest_have_the_text_below_its_tag(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system="standard")
    text = "彼女は三つのリンゴを持っている。 x = 3"
    StepView(console).step("rejected", 0.25, text)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in out.getvalue().splitlines()]
    assert max(map(cell_len, lines)) <= width
    assert "".join(lines).replace(" ", "") == f"rejected0.25{text}".replace(" ", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_what_no_model_scores_runs_on(*, terminal: bool) -> None:
    out = io.StringIO()
    system = "standard" if terminal else None
    view = StepView(Console(file=out, force_terminal=terminal, width=60, color_system=system))  # type: ignore[arg-type]
    for kind, source, reward, text in (
        ("kept", "target", None, "3"), ("kept", "target", None, " + 4\n"),
        ("kept", "draft", None, "= 8"), ("rejected", "draft", 0.5, "a"),
        ("kept", "target", None, "b"), ("kept", "target", None, "c"), ("kept", "draft", 0.75, "d"),
    ):  # fmt: skip
        view.event(StepEvent("", 0, kind, text, (), source, reward))  # type: ignore[arg-type]
    view.end()
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    lines = [line.strip() for line in plain.splitlines()]
    if terminal:
        assert lines == ["3 + 4", "", "= 8", "rejected 0.50 a", "target b", "c", "draft 0.75 d"]
    else:
        assert lines == [
            "[target] 3 + 4", "", "[draft] = 8", "[rejected 0.50] a", "[target] b", "[target] c",
            "[draft 0.75] d",
        ]  # fmt: skip


def test_a_model_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\tc\nd\x9b") == "a�[2Jb�\tc\nd�"
