"""Answers by an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from rsd_engine.cli.chat.backend import End, Message, Piece, Settings
from rsd_engine.cli.config_file import sampling_values
from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.engine.engine import Engine
from rsd_engine.outputs import FinishedEvent, RequestOutput
from rsd_engine.sampling_params import SamplingParams


class EngineBackend:
    """Goes by the chat template of the models, or continues the plain text if they have none.

    Args:
        engine: that answers; it is not closed here.
        name: what it is called.
        chat: how conversations become text.
    """

    def __init__(self, engine: Engine, name: str, chat: ChatSettings) -> None:
        self.name = name
        self._engine = engine
        self._chat = chat.of(engine.get_tokenizer())

    @property
    def note(self) -> str | None:
        if self._chat.chat:
            return None
        return (
            "these models have no chat template: they continue the text of the conversation, "
            "without roles; --chat-template FILE gives them one"
        )

    def check(self, settings: Settings) -> None:
        self._engine.stream({"prompt": "?", "question": "?"}, self._params(settings)).close()

    async def answer(
        self, messages: Sequence[Message], settings: Settings
    ) -> AsyncGenerator[Piece | End, None]:
        # The thread may wait for the tick in which the answer before this one was aborted.
        stream = await asyncio.to_thread(
            self._engine.stream, self._prompt(messages), self._params(settings)
        )
        async for event in stream:
            if isinstance(event, FinishedEvent):
                yield _end(event.output)
            else:
                yield Piece(event.kind, event.source, event.reward, event.text)

    async def close(self) -> None:
        return

    def _params(self, settings: Settings) -> SamplingParams:
        default = self._engine.get_default_sampling_params()
        return replace(default, **sampling_values(settings))

    def _prompt(self, messages: Sequence[Message]) -> dict[str, Any]:
        if self._chat.chat:
            return self._chat.engine_prompt({"messages": list(messages)})
        return {"prompt": plain_text(messages), "question": messages[-1]["content"]}


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation as text to be continued: answers follow at once, all else in a new line."""
    text = ""
    for message in messages:
        separator = "\n" if text and message["role"] != "assistant" else ""
        text += separator + message["content"]
    return text


def _end(result: RequestOutput) -> End:
    [output] = result.outputs
    metrics = result.metrics
    return End(
        output.finish_reason,
        len(output.token_ids),
        metrics.draft.tokens_generated,
        metrics.steps_accepted,
        metrics.steps_rejected,
        output.error,
    )
