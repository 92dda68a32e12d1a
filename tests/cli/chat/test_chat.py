"""The logic of a chat, without a terminal and without models."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from rsd_engine import EngineDeadError
from rsd_engine.cli.chat.backend import End, Piece
from rsd_engine.cli.chat.chat import HELP
from tests.cli.chat.conftest import Screen, Script

END = End("stop", tokens=10, draft_tokens=4, accepted=1, rejected=1)


def kept(text: str) -> Piece:
    return Piece("kept", "draft", 0.9, text)


def test_a_conversation_has_turns(screen: Screen) -> None:
    out, notes = screen.type("  What is 1 + 1? \n", [kept("It is"), kept(" 2.\n\n"), END])
    assert out == "It is 2.\n\n"
    assert re.fullmatch(
        r"10 tokens in \d+\.\d s \(\d+/s\), 1 of 2 draft steps accepted, 40% by the draft\n", notes
    )
    screen.type("And 2 + 2?", [kept("4"), END])
    messages, settings = screen.backend.asked[-1]
    assert messages == [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "It is 2.\n\n"},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    assert settings == {}


def test_text_alone_has_no_rejected_steps(screen: Screen) -> None:
    rejected = Piece("rejected", "draft", 0.1, "It is 3.")
    out, _ = screen.type("?", [rejected, Piece("kept", "target", None, "It is 2."), END])
    assert out == "It is 2.\n"
    assert screen.chat.conversation.messages()[-1]["content"] == "It is 2."


def test_steps_are_struck_through_and_replaced(colours: Screen) -> None:
    legend, _ = colours.type("/steps on")
    assert "target's rewrite" in legend
    out, _ = colours.type(
        "?",
        [
            kept("a = 1.\n\n"),
            Piece("rejected", "draft", 0.12, "b = 3.\n\n"),
            Piece("kept", "target", None, "b = 2.\n\n"),
            END,
        ],
    )
    lines = out.splitlines()
    assert "\x1b[32ma = 1.\x1b[0m" in lines[0] and "draft 0.90" in lines[0]
    assert "\x1b[9;31mb = 3.\x1b[0m" in lines[1] and "rejected 0.12" in lines[1]
    assert "\x1b[33mb = 2.\x1b[0m" in lines[2] and "target" in lines[2]
    assert colours.chat.conversation.messages()[-1]["content"] == "a = 1.\n\nb = 2.\n\n"


@pytest.mark.parametrize("steps", ["on", "off"])
def test_tokens_run_on_in_a_line(screen: Screen, steps: str) -> None:
    screen.type(f"/steps {steps}")
    pieces = [Piece("kept", "target", None, text) for text in ("a", " b", "\n", "c")]
    out, _ = screen.type("?", [*pieces, END])
    assert out == ("[target] a b\nc\n" if steps == "on" else "a b\nc\n")


@pytest.mark.parametrize("steps", ["on", "off"])
def test_a_model_cannot_steer_the_terminal(colours: Screen, steps: str) -> None:
    colours.type(f"/steps {steps}")
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\rok"
    out, notes = colours.type("?", [kept(evil), End("stop", error="bad \x1b[2J")])
    assert "ok" in out and "\x1b[2J" not in out + notes
    assert not {"\x07", "\x9b", "\r"} & set(out + notes)


def test_settings(screen: Screen) -> None:
    screen.type("/set temperature 0.7")
    screen.type("/set threshold 0.9")
    screen.type("/set max-tokens 12")
    screen.type("?", [kept("!"), END])
    settings = {"temperature": 0.7, "policy": "threshold:0.9", "max_tokens": 12}
    assert screen.backend.asked[-1][1] == settings
    _, notes = screen.type("/show")
    assert notes.splitlines() == [
        "scripted, 1 turn", "temperature = 0.7", "policy = threshold:0.9", "max_tokens = 12",
        "steps are not shown",
    ]  # fmt: skip
    screen.type("/set temperature")
    screen.type("/set threshold")
    assert screen.chat.settings == {"max_tokens": 12}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temperature hot", "temperature must be a number 0 or in [1e-6, 1e6], got 'hot'"),
        ("/set top_p 2", "top_p must be in (0, 1], got 2"),
        ("/set nothing 2", "unknown sampling parameters ['nothing']; allowed: ["),
        ("/set min_tokens 99999", "min_tokens must be at most max_tokens=2048, got 99999"),
        ("/set policy sometimes", "policy = 'sometimes': unknown; write one of"),
        ("/set threshold", "threshold is not set; set are: none"),
        ("/set", "/set needs a name"),
        ("/set n 2", "n cannot be set: a chat shows one answer"),
        ("/steps maybe", "/steps must be on or off, got 'maybe'"),
        ("/undo", "there is nothing to undo"),
        ("/save", "/save needs a file"),
        ("/save /nowhere/at/all", "cannot write /nowhere/at/all: No such file or directory"),
        ("/frobnicate", "unknown command /frobnicate; allowed: /set, "),
    ],
)
def test_errors_are_one_line_and_the_chat_goes_on(screen: Screen, line: str, said: str) -> None:
    out, notes = screen.type(line)
    assert out == "" and notes.startswith(f"error: {said}") and notes.count("\n") == 1
    assert screen.chat.settings == {}
    assert screen.chat.errors == 1


def test_a_question_that_fails_leaves_nothing(screen: Screen) -> None:
    for script in (
        [kept("Half"), ConnectionError("the server failed")],
        [kept("Half"), RuntimeError("the loop broke")],
        [kept("Half"), KeyError("of a fault in the program")],
        [kept("Half"), End("error", error="no finite logits")],
        [kept("no end")],
    ):
        out, notes = screen.type("?", script)  # type: ignore[arg-type]
        assert out.endswith("\n") and notes.startswith("error: ")
        assert screen.chat.conversation.messages() == []
    assert screen.backend.left == 5
    screen.backend.scripts = [[EngineDeadError("the GPU failed")]]
    with pytest.raises(EngineDeadError):
        screen.chat.line("?")


def test_undo_reset_and_system(screen: Screen) -> None:
    screen.type("/system Be brief.")
    screen.type("one", [kept("1"), END])
    screen.type("two", [kept("2"), END])
    _, notes = screen.type("/undo")
    assert notes == "taken back: two\n"
    system = {"role": "system", "content": "Be brief."}
    assert screen.chat.conversation.messages() == [
        system, {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
    ]  # fmt: skip
    screen.type("/reset")
    assert screen.chat.conversation.messages() == [system]
    screen.type("/system")
    assert screen.chat.conversation.messages() == []


def test_save_writes_what_generate_reads(screen: Screen, tmp_path: Path) -> None:
    file = tmp_path / "日本.jsonl"
    screen.type("/set threshold 0.5")
    screen.type("one", [kept("1 \ud800"), END])
    screen.type(f"/save {file}")
    screen.type("two", [kept("2"), END])
    _, notes = screen.type(f"/save {file}")
    assert notes == f"saved in {file}\n"
    [line] = file.read_text().splitlines()
    saved = json.loads(line)
    assert saved["params"] == {"policy": "threshold:0.5"}
    assert [message["content"] for message in saved["messages"]] == ["one", "1 \ud800", "two", "2"]
    other = tmp_path / "mine"
    other.write_text("precious")
    _, notes = screen.type(f"/save {other}")
    assert "exists" in notes and other.read_text() == "precious"


def test_a_question_may_begin_with_a_slash(screen: Screen) -> None:
    screen.type("//set is a command", [kept("yes"), END])
    assert screen.backend.asked[-1][0][-1]["content"] == "/set is a command"
    assert screen.type("   \n") == ("", "")


def test_help_and_quit(screen: Screen) -> None:
    _, notes = screen.type("/help")
    assert [line.split("  ")[0] for line in notes.splitlines()] == list(HELP)
    _, notes = screen.type("/what")
    allowed = notes.partition("allowed: ")[2].partition(";")[0].split(", ")
    assert {form.split()[0] for form in HELP} == {*allowed}
    assert screen.chat.line("/quit") is False


def test_what_was_cut_off_is_told(screen: Screen) -> None:
    _, notes = screen.type("?", [kept("a"), End("length", tokens=1)])
    assert notes.splitlines()[1] == "cut off at the limit of max_tokens or the context"
    _, notes = screen.type("?", [kept("a"), End("stop")])
    assert re.fullmatch(r"\d\.\d s\n", notes), "a server that tells no usage"


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_ends_the_answer_and_not_the_chat(screen: Screen) -> None:
    scripts: list[Script] = [[kept("1, 2,"), interrupt], [interrupt]]
    for line, script in zip(("one", "two"), scripts, strict=True):
        with pytest.raises(KeyboardInterrupt):
            screen.type(line, script)
    assert screen.shown() == ("", "broken off; the question is taken back\n")
    assert screen.backend.left == 2, "the backend was told"
    screen.type("three", [kept("3"), END])
    assert [message["content"] for message in screen.backend.asked[-1][0]] == [
        "one", "1, 2,", "three",
    ]  # fmt: skip
