"""Where the lines of a chat come from."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from typing import Protocol

from rsd_engine.cli.chat.view import ChatView
from rsd_engine.cli.errors import UsageError

_BOLD, _PLAIN = "\x01\x1b[1m\x02", "\x01\x1b[0m\x02"  # readline must not count what is in \1 \2


class Lines(Protocol):
    """Gives the lines of a chat one by one."""

    def next(self) -> str | None:
        """The next line; None at the end."""


class TypedLines:
    """Lines of a terminal, with the keys and the history of readline where Python has it.

    Ctrl-C drops a line that is not complete.

    Args:
        view: of the chat.
        colour: whether the prompt may stand out.
    """

    def __init__(self, view: ChatView, *, colour: bool) -> None:
        with suppress(ImportError):
            importlib.import_module("readline")  # `input` uses it from then on
        self._view = view
        self._prompt = f"{_BOLD}> {_PLAIN}" if colour else "> "

    def next(self) -> str | None:
        while True:
            try:
                return input(self._prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
                self._view.note("Ctrl-D or /quit ends the chat")
            except UnicodeDecodeError as error:
                self._view.error(f"that is not text: {error}")


class PipedLines:
    """Lines of stdin, which no person types."""

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> str | None:
        raw = sys.stdin.buffer.readline()
        self._number += 1
        try:
            return raw.decode() if raw else None
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin, line {self._number}, is not UTF-8 text: {error}") from None
