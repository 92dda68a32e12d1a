"""A backend that says what it is told to, and a server of the demo family."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import pytest
from rich.console import Console

from rsd_engine.cli.chat.backend import End, Message, Piece, Settings
from rsd_engine.cli.chat.chat import Chat
from rsd_engine.cli.chat.view import ChatView
from rsd_engine.cli.config_file import sampling_values
from tests.client.conftest import fake
from tests.server.conftest import async_engine, engine, live

__all__ = ["async_engine", "engine", "fake", "live"]

Script = list[Piece | End | Exception | Callable[[], None]]


class Scripted:
    """A backend whose answers are written down; it notes what it was asked."""

    name, note = "scripted", None

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.asked: list[tuple[list[Message], dict[str, object]]] = []
        self.left = 0  # answers that were left, at their end or before

    def check(self, settings: Settings) -> None:
        sampling_values(settings)

    async def answer(
        self, messages: Sequence[Message], settings: Settings
    ) -> AsyncGenerator[Piece | End, None]:
        self.asked.append((list(messages), dict(settings)))
        try:
            for item in self.scripts.pop(0):
                if isinstance(item, Exception):
                    raise item
                if callable(item):
                    item()
                    await asyncio.sleep(30)
                else:
                    yield item
        finally:
            self.left += 1

    async def close(self) -> None:
        return


class Screen:
    """A chat and what it prints."""

    def __init__(self, runner: asyncio.Runner, *, colour: bool) -> None:
        self.backend = Scripted()
        self._out, self._notes = io.StringIO(), io.StringIO()
        system = "standard" if colour else None
        consoles = [
            Console(file=file, force_terminal=colour, color_system=system, width=80)  # type: ignore[arg-type]
            for file in (self._out, self._notes)
        ]
        view = ChatView(*consoles, show_steps=False)
        self.chat = Chat(self.backend, view, runner, {}, None)

    def type(self, line: str, script: Script | None = None) -> tuple[str, str]:
        """What a line prints: the answer, and what is said about it."""
        if script is not None:
            self.backend.scripts.append(script)
        for file in (self._out, self._notes):
            file.seek(0)
            file.truncate()
        assert self.chat.line(line)
        return self.shown()

    def shown(self) -> tuple[str, str]:
        """What the last line printed."""
        return self._out.getvalue(), self._notes.getvalue()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def screen(runner: asyncio.Runner) -> Screen:
    return Screen(runner, colour=False)


@pytest.fixture
def colours(runner: asyncio.Runner) -> Screen:
    return Screen(runner, colour=True)
