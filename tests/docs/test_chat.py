"""What `docs/chat.md` shows is what happens."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.testing import CliRunner

from rsd_engine.cli.app import app
from rsd_engine.cli.chat.chat import HELP
from rsd_engine.demo import checkpoint_dir
from tests.docs.documents import document

CHAT = document("docs/chat.md")


def normalised(text: str) -> list[str]:
    """Lines of steps and text, those of a terminal and of a pipe alike; times become dots."""
    text = re.sub(r"in [\d.]+ s \(\d+/s\)", "in ... s", text)
    text = re.sub(r"^ *(draft|target|rejected)( \d\.\d\d)? (?=[A-Z])", r"[\1\2] ", text, flags=re.M)
    return [line for line in text.splitlines() if line and not line.startswith("accepted draft")]


def test_the_transcript(monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = CHAT.blocks("")
    command, greeting, *lines = block.splitlines()
    typed = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    shown = normalised("\n".join(line for line in lines if not line.startswith("> ")))
    monkeypatch.chdir(checkpoint_dir("draft").parent)
    done = CliRunner().invoke(app, shlex.split(command)[2:], input="\n".join(typed))
    assert normalised(done.output) == shown
    assert len(shown) > 20 and greeting.endswith("Ctrl-D ends the chat")


def test_every_command_is_there() -> None:
    told = re.findall(r"`(/[a-z]+)", CHAT.text.partition("## Commands")[2])
    assert set(told) == {form.split()[0] for form in HELP}
