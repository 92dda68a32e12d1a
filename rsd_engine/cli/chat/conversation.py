"""The messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_engine.cli.chat.backend import Message
from rsd_engine.cli.errors import UsageError


class Conversation:
    """Questions and their answers, in turns, below a system message or none.

    Args:
        system: the system message.
    """

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self._turns: list[tuple[str, str]] = []
        self._saved: set[Path] = set()

    def __len__(self) -> int:
        return len(self._turns)

    def messages(self, question: str | None = None) -> list[Message]:
        """All messages, with a new question at their end."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self._turns:
            found.append({"role": "user", "content": asked})
            found.append({"role": "assistant", "content": answered})
        if question is not None:
            found.append({"role": "user", "content": question})
        return found

    def add(self, question: str, answer: str) -> None:
        """Adds a turn."""
        self._turns.append((question, answer))

    def undo(self) -> str | None:
        """Takes the last turn back and returns its question; None if there is no turn."""
        return self._turns.pop()[0] if self._turns else None

    def reset(self) -> None:
        """Takes all turns back; the system message stays."""
        self._turns.clear()

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Writes the conversation as one line of JSON, which `rsd generate --input` reads.

        Raises:
            UsageError: there is such a file, which this chat has not written, or it cannot be made.
        """
        line = json.dumps({"messages": self.messages(), "params": dict(settings)})
        try:
            path = path.expanduser()
            with path.open("w" if path in self._saved else "x", encoding="utf-8") as file:
                file.write(line + "\n")
        except FileExistsError:
            raise UsageError(f"{path} exists; give another file") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who does not exist
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot write {path}: {reason}") from None
        self._saved.add(path)
