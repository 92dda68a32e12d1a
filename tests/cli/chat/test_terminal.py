"""`rsd chat` at a terminal: a process behind a pty, the keys, and what is on the screen."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.demo.problems import generate
from tests.server.conftest import LiveServer

ROOT = Path(__file__).resolve().parents[3]
QUESTION = generate(3, "test", 1)[0].question
CTRL_C, CTRL_D, UP, ENTER = b"\x03", b"\x04", b"\x1b[A", b"\r"
PROMPT = "\x1b[1m> \x1b[0m"
SECONDS = 60.0  # that anything may take on a busy machine


class Terminal:
    """A chat at a terminal of 80 columns."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        self._keys, screen = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rsd_engine.cli", "chat", *arguments],
            stdin=screen, stdout=screen, stderr=screen, start_new_session=True,
            preexec_fn=_take_terminal,
            env={
                **os.environ, "PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm-256color",
                "COLUMNS": "80", **environment,
            },
        )  # fmt: skip
        os.close(screen)
        self.screen = ""

    def press(self, keys: str | bytes) -> None:
        """Presses keys, now."""
        os.write(self._keys, keys.encode() if isinstance(keys, str) else keys)

    def see(self, text: str) -> str:
        """Waits until a text is on the screen; returns all up to its end, which is then over."""
        assert self._appears(text, SECONDS), f"no {text!r} in {self.screen!r}"
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def interrupt(self, text: str) -> None:
        """Presses Ctrl-C at a prompt, and again, until a text is on the screen.

        Python notices one that comes between prompt and `select` only at the next key.
        """
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            self.press(CTRL_C)
            if self._appears(text, SECONDS / 10):
                break
        self.see(text)

    def _appears(self, text: str, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while text not in self.screen:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._keys], [], [], left)[0]:
                return False
            try:
                self.screen += os.read(self._keys, 65536).decode(errors="replace")
            except OSError:  # the process has ended
                return False
        return True

    def end(self) -> int:
        """The exit code; the terminal is closed."""
        try:
            return self.process.wait(SECONDS)
        finally:
            os.close(self._keys)


def _take_terminal() -> None:
    """Makes stdin the terminal of the new session, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(live: LiveServer) -> Iterator[Terminal]:
    started = Terminal(f"--url={live.url}/v1", "--show-steps", "--set=temperature=0")
    yield started
    started.process.kill()


def talk(terminal: Terminal) -> None:
    """A chat with all that is special about a terminal."""
    assert "/help lists commands" in terminal.see(PROMPT)
    terminal.press(QUESTION.encode() + ENTER)
    answer = terminal.see("by the draft")
    assert re.search(r"\x1b\[2;32m +draft \d\.\d\d\x1b\[0m \x1b\[32m[A-Z]", answer)
    assert re.search(r"\x1b\[2;31mrejected \d\.\d\d\x1b\[0m \x1b\[9;31m[A-Z]", answer)
    assert re.search(r"\x1b\[2;33m +target\x1b\[0m \x1b\[33m[A-Z]", answer)
    assert "The answer is" in answer
    terminal.see(PROMPT)
    # An answer that has no end is broken off, and the chat goes on.
    for line in (b"/set mode target", b"/set ignore_eos true", b"/set max_tokens 700"):
        terminal.press(line + ENTER)
        terminal.see(PROMPT)
    terminal.press(b"On and on" + ENTER)
    terminal.see("\x1b[33m")
    terminal.press(CTRL_C)
    terminal.see("broken off")
    terminal.see(PROMPT)
    terminal.press(b"half a line")
    terminal.see("half a line")
    terminal.interrupt("Ctrl-D or /quit ends the chat")
    terminal.see(PROMPT)
    terminal.press(b"/undo" + ENTER)
    terminal.see("taken back: On and on")
    terminal.see(PROMPT)
    # Arrow keys: the line before the last one, again.
    terminal.press(UP + UP + UP)
    terminal.see("/set max_tokens 700")
    terminal.press(b"0" + ENTER)
    terminal.see(PROMPT)
    terminal.press(b"/show" + ENTER)
    terminal.see("max_tokens = 7000")
    terminal.see(PROMPT)
    terminal.press(CTRL_D)
    assert terminal.end() == 0


def test_over_a_server(terminal: Terminal) -> None:
    talk(terminal)


@pytest.mark.slow  # loading torch and the models
def test_over_an_engine() -> None:
    models = [f"--{role}={checkpoint_dir(role)}" for role in ROLES]
    terminal = Terminal(*models, "--show-steps", "--set=temperature=0", "--device=cpu")
    try:
        talk(terminal)
    finally:
        terminal.process.kill()


@pytest.mark.slow  # `tests/cli/test_show.py` asks the same of the view alone
def test_no_color_means_none(live: LiveServer) -> None:
    terminal = Terminal(f"--url={live.url}/v1", "--show-steps", "--set=temperature=0", NO_COLOR="1")
    try:
        terminal.see("> ")
        terminal.press(QUESTION.encode() + ENTER)
        shown = terminal.see("by the draft")
        assert re.search(r"\n\[rejected \d\.\d\d\] [A-Z]", shown)
        colours = re.findall(r"\x1b\[[\d;]*m", shown)
        assert colours == []
        terminal.see("\n> ")
        terminal.press(CTRL_D)
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
