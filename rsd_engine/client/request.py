"""One streamed request, and the times at which its parts came."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openai import AsyncOpenAI

from rsd_engine.client.errors import error_text
from rsd_engine.client.speculation import Speculation, speculation_of

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True)
class Target:
    """What is asked, and how.

    Attributes:
        client: of the server; it must not try again, or a failure would look like a slow answer.
        model: what requests call it.
        endpoint: which of OpenAI's two.
        max_tokens: of an answer.
        fields: more fields of every request, such as {"temperature": 0}.
    """

    client: AsyncOpenAI
    model: str
    endpoint: Endpoint
    max_tokens: int
    fields: Mapping[str, Any]


@dataclass
class Answer:
    """What came of a request. Times are seconds of `time.perf_counter`.

    Attributes:
        sent: when.
        texts: when each chunk with text came.
        ended: when the last chunk came that was part of the answer.
        prompt_tokens: by the server's usage; None if it gave none.
        completion_tokens: likewise.
        speculation: None if the server tells nothing of a draft.
        error: why the request failed; None if it did not.
    """

    sent: float
    texts: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    speculation: Speculation | None = None
    error: str | None = None


async def ask(target: Target, prompt: str) -> Answer:
    """Sends a prompt and reads the answer to its end; what goes wrong is in the answer."""
    answer = Answer(sent=time.perf_counter())
    finished = False
    try:
        stream = await _start(target, prompt)
        async with stream:
            async for chunk in stream:
                finished |= _read(answer, chunk, time.perf_counter())
        if not finished:
            answer.error = "the stream ended without a finish_reason"
    except Exception as error:  # whatever a server sends fails its own request, not the run
        answer.error = error_text(error)
    answer.ended = answer.ended or time.perf_counter()
    return answer


async def _start(target: Target, prompt: str) -> Any:
    common: dict[str, Any] = {
        "model": target.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": dict(target.fields),
    }
    if target.endpoint == "completions":
        completions = target.client.completions
        return await completions.create(prompt=prompt, max_tokens=target.max_tokens, **common)
    messages: Any = [{"role": "user", "content": prompt}]
    return await target.client.chat.completions.create(
        messages=messages, max_completion_tokens=target.max_tokens, **common
    )


def _read(answer: Answer, chunk: Any, now: float) -> bool:
    """Notes what a chunk tells; returns whether it ends the answer."""
    if chunk.usage is not None:
        answer.prompt_tokens = chunk.usage.prompt_tokens
        answer.completion_tokens = chunk.usage.completion_tokens
        answer.speculation = speculation_of(chunk)
    if not chunk.choices:
        return False
    [choice] = chunk.choices
    answer.ended = now
    if choice.delta.content if hasattr(choice, "delta") else choice.text:
        answer.texts.append(now)
    return choice.finish_reason is not None
