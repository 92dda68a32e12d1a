"""A chat, line by line: questions, and commands that begin with a slash."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from rsd_engine.cli.chat.backend import Backend, End, Settings
from rsd_engine.cli.chat.conversation import Conversation
from rsd_engine.cli.chat.settings import field_of, parse_setting
from rsd_engine.cli.chat.view import ChatView
from rsd_engine.cli.errors import error_line
from rsd_engine.outputs import EngineDeadError

HELP = {
    "/set NAME VALUE": "a sampling parameter, the policy, or short: /set threshold 0.9; without a "
    "value its default",
    "/show": "what answers, and with which settings",
    "/system TEXT": "the system message; without text none",
    "/steps on|off": "show every step with its reward",
    "/undo": "take the last question and its answer back",
    "/reset": "take all of them back",
    "/save FILE": "write the conversation as a line of JSON, as rsd generate --input takes it",
    "/help": "this list",
    "/quit": "end the chat, as Ctrl-D does; Ctrl-C ends an answer",
}
ESCAPED = "//"  # how a question begins with a slash


class Chat:
    """A conversation with a backend.

    Args:
        backend: that answers.
        view: that shows it.
        runner: whose event loop the backend runs in.
        settings: to begin with, checked.
        system: the system message.
    """

    def __init__(
        self,
        backend: Backend,
        view: ChatView,
        runner: asyncio.Runner,
        settings: Settings,
        system: str | None = None,
    ) -> None:
        self.conversation = Conversation(system)
        self.settings: dict[str, Any] = dict(settings)
        self.errors = 0
        self._backend = backend
        self._view = view
        self._runner = runner
        self._answer = ""  # what has come of it so far
        self._commands: dict[str, Callable[[str], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/system": self._system,
            "/steps": self._steps,
            "/undo": self._undo,
            "/reset": self._reset,
            "/save": self._save,
            "/help": self._help,
        }

    def line(self, text: str) -> bool:
        """Answers a question or obeys a command; returns whether the chat goes on.

        Raises:
            EngineDeadError: no question will be answered any more.
            KeyboardInterrupt: Ctrl-C was pressed; the chat may go on.
        """
        stripped = text.strip()
        if stripped == "/quit":
            return False
        try:
            if stripped.startswith("/") and not stripped.startswith(ESCAPED):
                self._obey(stripped)
            elif stripped:
                self._ask(stripped[1:] if stripped.startswith(ESCAPED) else stripped)
        except EngineDeadError:
            raise
        except Exception as error:  # a chat outlives what goes wrong with one of its lines
            self._fail(error_line(error))
        return True

    def _fail(self, message: str) -> None:
        self.errors += 1
        self._view.error(message)

    # ------------------------------------------------------------------ questions

    def _ask(self, question: str) -> None:
        """An answer that is broken off stays as far as it has come; a failed one leaves nothing."""
        started = time.perf_counter()
        self._answer = ""
        try:
            end = self._runner.run(self._read_answer(question))
        except KeyboardInterrupt:
            self._view.end_of_text()
            kept = bool(self._answer.strip())
            self._view.note("broken off" if kept else "broken off; the question is taken back")
            if kept:
                self.conversation.add(question, self._answer)
            raise
        finally:
            self._view.end_of_text()
        if end.error is not None:
            self._fail(end.error)
            return
        self.conversation.add(question, self._answer)
        self._view.facts(end, time.perf_counter() - started)

    async def _read_answer(self, question: str) -> End:
        messages = self.conversation.messages(question)
        async with aclosing(self._backend.answer(messages, self.settings)) as pieces:
            async for piece in pieces:
                if isinstance(piece, End):
                    return piece
                if piece.kind == "kept":
                    self._answer += piece.text
                self._view.piece(piece)
        raise ConnectionError("the answer has no end")

    # ------------------------------------------------------------------ commands

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise ValueError(
                f"unknown command {name}; allowed: {', '.join([*self._commands, '/quit'])}; a "
                f"question may begin with {ESCAPED}"
            )
        self._commands[name](argument.strip())

    def _set(self, argument: str) -> None:
        name, _, text = argument.partition(" ")
        if not name:
            raise ValueError("/set needs a name, as in /set temperature 0.7")
        changed = {key: old for key, old in self.settings.items() if key != field_of(name)}
        if text:
            field, value = parse_setting(name, text.strip())
            changed[field] = value
        elif field_of(name) not in self.settings:
            raise ValueError(f"{name} is not set; set are: {', '.join(self.settings) or 'none'}")
        self._backend.check(changed)
        self.settings = changed

    def _show(self, argument: str) -> None:
        count = len(self.conversation)
        turns = "1 turn" if count == 1 else f"{count} turns"
        self._view.note(f"{self._backend.name}, {turns}")
        if self.conversation.system:
            self._view.note(f"system: {self.conversation.system}")
        for name, value in self.settings.items():
            self._view.note(f"{name} = {value if isinstance(value, str) else json.dumps(value)}")
        self._view.note(f"steps are {'shown' if self._view.show_steps else 'not shown'}")

    def _system(self, argument: str) -> None:
        self.conversation.system = argument or None

    def _steps(self, argument: str) -> None:
        if argument not in ("on", "off"):
            raise ValueError(f"/steps must be on or off, got {argument!r}")
        self._view.show_steps = argument == "on"
        if self._view.show_steps:
            self._view.legend()

    def _undo(self, argument: str) -> None:
        question = self.conversation.undo()
        if question is None:
            raise ValueError("there is nothing to undo")
        self._view.note(f"taken back: {textwrap.shorten(question, 60, placeholder=' ...')}")

    def _reset(self, argument: str) -> None:
        self.conversation.reset()
        self._view.note("a new conversation")

    def _save(self, argument: str) -> None:
        if not argument:
            raise ValueError("/save needs a file")
        self.conversation.save(Path(argument), self.settings)
        self._view.note(f"saved in {argument}")

    def _help(self, argument: str) -> None:
        width = max(map(len, HELP))
        for form, meaning in HELP.items():
            self._view.note(f"{form:<{width}}  {meaning}")
