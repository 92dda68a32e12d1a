"""Clients of all kinds in an event loop: some wait for their answers, some hang up before."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.server.storms.cases import Case, Told

PATIENCE = 0.5  # seconds, at most, until a client hangs up
SECONDS = 120.0  # that an answer may take


@dataclass
class Tally:
    """What all clients found."""

    answers: list[tuple[int, Told]] = field(default_factory=list)  # with index of its case
    refused: int = 0  # answers 503
    clients: Counter[str] = field(default_factory=Counter)  # by kind


@dataclass(frozen=True)
class Visitor:
    """One client's way to the server."""

    http: httpx.AsyncClient
    cases: Sequence[Case]
    rng: Random
    tally: Tally

    def pick(self) -> tuple[int, Case]:
        index = self.rng.randrange(len(self.cases))
        return index, self.cases[index]

    def soon(self) -> float:
        return self.rng.random() * PATIENCE


class Refused(Exception):
    """The server is full or about to stop, and says so."""


async def ask(http: httpx.AsyncClient, case: Case, request_id: str) -> Told:
    """The choices of an answer in one piece, which is the answer to this request.

    Raises:
        Refused: it is 503.
    """
    headers = {"X-Request-Id": request_id}
    answer = await http.post(case.path, json=case.body, headers=headers)
    assert answer.headers["X-Request-Id"] == request_id
    check_status(answer.status_code, answer.headers, answer.json())
    return choices_of(answer.json())


async def listen(http: httpx.AsyncClient, case: Case, request_id: str) -> Told:
    """The same, of a stream.

    Raises:
        Refused: it is 503, or an error 503 is the last of its events.
    """
    headers, body = {"X-Request-Id": request_id}, {**case.body, "stream": True}
    async with http.stream("POST", case.path, json=body, headers=headers) as answer:
        assert answer.headers["X-Request-Id"] == request_id
        if answer.status_code != 200:
            check_status(answer.status_code, answer.headers, json.loads(await answer.aread()))
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
    *events, done = (line.removeprefix("data: ") for line in lines)
    assert done == "[DONE]"
    return choices_of_stream([json.loads(event) for event in events])


def check_status(status: int, headers: httpx.Headers, body: dict[str, Any]) -> None:
    """Raises Refused if the answer is a clean 503; nothing else but 200 is allowed."""
    if status == 503:
        assert body["error"]["code"] == 503
        raise Refused(headers.get("Retry-After"))
    assert status == 200, body


def choices_of(body: dict[str, Any]) -> Told:
    """Text and reason of the end of each choice; they come in order."""
    choices = body["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [
        (c["text"] if "text" in c else c["message"]["content"], c["finish_reason"]) for c in choices
    ]


def choices_of_stream(chunks: Sequence[dict[str, Any]]) -> Told:
    """The same, put together; all chunks are of one answer, and each choice ends once."""
    if "error" in chunks[-1]:
        assert chunks[-1]["error"]["code"] == 503
        raise Refused
    assert len({chunk["id"] for chunk in chunks}) == 1
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index = choice["index"]
        assert index not in reasons
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        texts.setdefault(index, []).append(text)
        if choice["finish_reason"] is not None:
            reasons[index] = choice["finish_reason"]
    return [("".join(texts[i]), reasons[i]) for i in range(len(reasons))]


# ---------------------------------------------------------------- who stays, who goes


async def waits(visitor: Visitor) -> None:
    await _answered(visitor, ask)


async def reads(visitor: Visitor) -> None:
    await _answered(visitor, listen)


async def _answered(
    visitor: Visitor, way: Callable[[httpx.AsyncClient, Case, str], Awaitable[Told]]
) -> None:
    """Asks until it is let in."""
    index, case = visitor.pick()
    request_id = f"{way.__name__}-{visitor.rng.getrandbits(64)}"
    while True:
        try:
            visitor.tally.answers.append((index, await way(visitor.http, case, request_id)))
            return
        except Refused as refused:
            assert refused.args[0] == "1"  # Retry-After
            visitor.tally.refused += 1
            await asyncio.sleep(visitor.soon())


async def is_cancelled(visitor: Visitor) -> None:
    """A task that waits for an answer, or reads it, ends; its connection ends with it."""
    way = visitor.rng.choice([waits, reads])
    task = asyncio.ensure_future(way(visitor))
    await asyncio.sleep(visitor.soon())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def goes_while_waiting(visitor: Visitor) -> None:
    await _hang_up(visitor, visitor.soon(), {})


async def goes_at_once(visitor: Visitor) -> None:
    await _hang_up(visitor, 0.0, {"stream": visitor.rng.random() < 0.5})


async def goes_after_the_first_text(visitor: Visitor) -> None:
    await _hang_up(visitor, 0.0, {"stream": True}, until=b"data: ")


async def _hang_up(
    visitor: Visitor, seconds: float, more: dict[str, Any], *, until: bytes = b""
) -> None:
    """Sends a request, maybe only half of it, and closes the connection without a word."""
    _, case = visitor.pick()
    address = urlsplit(str(visitor.http.base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps({**case.body, **more}).encode()
    head = (
        f"POST {case.path} HTTP/1.1\r\nHost: rsd\r\nContent-Type: application/json\r\n"
        "Connection: close\r\n"  # a refusal has no text, and ends
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    if not until and visitor.rng.random() < 0.1:
        body = body[: len(body) // 2]
    writer.write(head.encode() + body)
    await writer.drain()
    if until:
        while until not in (line := await reader.readline()) and line:
            continue
    await asyncio.sleep(seconds)
    writer.transport.abort()


Client = Callable[[Visitor], Awaitable[None]]
STAY: tuple[Client, ...] = (waits, reads)
GO: tuple[Client, ...] = (is_cancelled, goes_while_waiting, goes_at_once, goes_after_the_first_text)


def storm(url: str, cases: Sequence[Case], *, clients: int, count: int, rng: Random) -> Tally:
    """About `count` requests by so many clients at once, of which a third hang up."""
    tally = Tally()

    async def one_after_the_other(http: httpx.AsyncClient) -> None:
        visitor = Visitor(http, cases, Random(rng.random()), tally)
        for _ in range(-(-count // clients)):
            client = visitor.rng.choice(visitor.rng.choice([STAY, STAY, GO]))
            await client(visitor)
            tally.clients[client.__name__] += 1

    async def together() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=SECONDS) as http:
            await asyncio.gather(*(one_after_the_other(http) for _ in range(clients)))

    asyncio.run(together())
    return tally


def compared(tally: Tally, alone: Sequence[Told]) -> int:
    """How many answers there are; each is what the engine says alone."""
    for index, found in tally.answers:
        assert found == alone[index], f"case {index}"
    return len(tally.answers)
