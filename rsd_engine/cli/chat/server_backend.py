"""Answers by a server that speaks OpenAI's protocol; by ours, with its steps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from openai import APIError, AsyncOpenAI

from rsd_engine.cli.chat.backend import End, Message, Piece, Settings
from rsd_engine.cli.config_file import sampling_values
from rsd_engine.client.connect import find_model, open_client
from rsd_engine.client.errors import error_text
from rsd_engine.sampling_params import OWN_FIELDS

_OWNER = "rsd-engine"  # of the models that `rsd serve` lists


class ServerBackend:
    """One model of a server; see `connect`.

    Args:
        client: of the server.
        model: what requests call the model.
        has_steps: whether the server takes and sends what RSD has beyond OpenAI's fields.
        options: more fields of every request.
    """

    note = None

    def __init__(
        self, client: AsyncOpenAI, model: str, options: Mapping[str, Any], *, has_steps: bool
    ) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._has_steps = has_steps

    @property
    def name(self) -> str:
        return f"{self._model} at {self._client.base_url}"

    def check(self, settings: Settings) -> None:
        sampling_values(settings)
        foreign = [name for name in OWN_FIELDS if name in settings]
        if foreign and not self._has_steps:
            raise ValueError(f"{foreign[0]} is RSD's, and this server is no `rsd serve`")

    async def answer(
        self, messages: Sequence[Message], settings: Settings
    ) -> AsyncGenerator[Piece | End, None]:
        self.check(settings)
        end = _EndOfStream()
        with _clean_errors():
            request = self._request(messages, settings)
            stream: Any = await self._client.chat.completions.create(**request)
            async with stream:
                async for chunk in stream:
                    end.read(chunk)
                    piece = _piece(chunk)
                    if piece is not None:
                        yield piece
        yield end.value()

    async def close(self) -> None:
        await self._client.close()

    def _request(self, messages: Sequence[Message], settings: Settings) -> dict[str, Any]:
        own = {name: value for name, value in settings.items() if name in OWN_FIELDS}
        others = {name: value for name, value in settings.items() if name not in OWN_FIELDS}
        rsd = {"rsd": {**own, "steps": True}} if self._has_steps else {}
        return {
            "model": self._model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {**self._options, **others, **rsd},
        }


async def connect(url: str, model: str | None, options: Mapping[str, Any]) -> ServerBackend:
    """Asks a server for its models.

    Args:
        url: with the version, such as http://127.0.0.1:8000/v1.
        model: to ask for; None takes the first.
        options: more fields of every request.

    Raises:
        ValueError: the server has no such model.
        ConnectionError: it cannot be reached, or refuses to answer.
    """
    client = open_client(url)
    found = await find_model(client, model)
    return ServerBackend(client, found.id, options, has_steps=found.owned_by == _OWNER)


@contextmanager
def _clean_errors() -> Iterator[None]:
    """Errors of the client as one that a chat knows."""
    try:
        yield
    except APIError as error:
        raise ConnectionError(error_text(error)) from error


class _EndOfStream:
    """What the chunks of a stream tell about its end."""

    def __init__(self) -> None:
        self._finish_reason = "nothing said"
        self._tokens: int | None = None
        self._draft_tokens = self._accepted = self._rejected = 0

    def read(self, chunk: Any) -> None:
        if chunk.choices and chunk.choices[0].finish_reason:
            self._finish_reason = chunk.choices[0].finish_reason
        if chunk.usage is not None:
            self._tokens = chunk.usage.completion_tokens
        step = _step(chunk)
        if step is None:
            return
        if step["kind"] == "rejected":
            self._rejected += 1
        elif step["source"] == "draft":
            self._draft_tokens += step["num_tokens"]
            self._accepted += step["reward"] is not None

    def value(self) -> End:
        return End(
            self._finish_reason,
            self._tokens,
            self._draft_tokens,
            self._accepted,
            self._rejected,
        )


def _piece(chunk: Any) -> Piece | None:
    step = _step(chunk)
    if step is not None:
        return Piece(step["kind"], step["source"], step["reward"], step["text"])
    text = chunk.choices[0].delta.content if chunk.choices else None
    return Piece("kept", None, None, text) if text else None


def _step(chunk: Any) -> Any:
    """The decided step that a chunk of our server has, or None."""
    return (getattr(chunk, "rsd", None) or {}).get("step")
