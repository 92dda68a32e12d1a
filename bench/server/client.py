"""Asks a server for completions, several at a time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_PATH = "/v1/completions"
_SECONDS = 600.0  # that an answer may take


@dataclass(frozen=True)
class Answer:
    """A completion.

    Attributes:
        first: seconds until its first text came; until the end if it came whole.
    """

    text: str
    first: float


def ask_all(
    url: str, prompts: Sequence[str], fields: dict[str, Any], *, at_once: int, stream: bool
) -> list[Answer]:
    """Completes every prompt, in a request each; so many are open at any time."""

    async def together() -> list[Answer]:
        turn = asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=at_once)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_SECONDS) as http:

            async def one(prompt: str) -> Answer:
                async with turn:
                    body = {**fields, "prompt": prompt, "stream": stream}
                    return await (_listen if stream else _ask)(http, body)

            return await asyncio.gather(*map(one, prompts))

    return asyncio.run(together())


async def _ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    started = time.perf_counter()
    answer = (await http.post(_PATH, json=body)).raise_for_status()
    return Answer(answer.json()["choices"][0]["text"], time.perf_counter() - started)


async def _listen(http: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    started, first, pieces = time.perf_counter(), 0.0, []
    async with http.stream("POST", _PATH, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
                if not first and pieces[-1]:
                    first = time.perf_counter() - started
    return Answer("".join(pieces), first)
