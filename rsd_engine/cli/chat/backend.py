"""What answers in a chat, as the chat sees it: an engine in this process, or a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rsd_engine.outputs import StepKind, StepSource

Message = dict[str, str]
Settings = Mapping[str, Any]
"""Fields of SamplingParams as JSON values, the policy as text."""


@dataclass(frozen=True)
class Piece:
    """A decided step, or a few tokens where no step is scored."""

    kind: StepKind
    source: StepSource | None  # None if the server does not tell
    reward: float | None
    text: str


@dataclass(frozen=True)
class End:
    """How an answer ended.

    Attributes:
        finish_reason: as in `CompletionOutput`, or what the server said.
        tokens: of the answer; None if the server does not tell.
        draft_tokens: those among them that the draft wrote.
        accepted: scored steps that were kept.
        rejected: scored steps that the target rewrote.
        error: what went wrong, if something did.
    """

    finish_reason: str
    tokens: int | None = None
    draft_tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    error: str | None = None


class Backend(Protocol):
    """Answers conversations. All of it runs in one event loop."""

    @property
    def name(self) -> str:
        """What answers, in a few words."""

    @property
    def note(self) -> str | None:
        """What the user should know of it before the first question."""

    def check(self, settings: Settings) -> None:
        """Raises ValueError if an answer cannot be written with these settings."""

    def answer(
        self, messages: Sequence[Message], settings: Settings
    ) -> AsyncGenerator[Piece | End, None]:
        """The pieces of an answer, then its end; leaving it aborts the answer.

        Raises:
            ValueError: the conversation or the settings are not allowed.
            ConnectionError: the server cannot be reached, or has failed.
        """

    async def close(self) -> None:
        """Lets go of the connection, if there is one."""
