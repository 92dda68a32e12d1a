"""Server-sent events, and what becomes of a request whose client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def event(value: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """An answer in pieces; proxies would cut it in a long silence without comment lines.

    Args:
        events: as bytes, see `event`.
        keep_alive_seconds: of silence until a comment line comes.
        end: called once nothing more is sent, even if the client went before the first event.
    """

    def __init__(
        self, events: AsyncIterator[bytes], keep_alive_seconds: float, end: Callable[[], None]
    ) -> None:
        super().__init__(
            with_keep_alive(events, keep_alive_seconds),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def with_keep_alive(events: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """The same events, with a comment line after every `seconds` of silence."""
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            found, pending = pending, None
            try:
                yield found.result()
            except _Ended:
                return
    finally:
        if pending is not None:
            pending.cancel()
            with suppress(asyncio.CancelledError, _Ended):
                await pending
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _next(events: AsyncIterator[bytes]) -> bytes:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _Ended from None


class _Ended(Exception):
    """A task cannot end with StopAsyncIteration."""
