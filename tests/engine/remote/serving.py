"""Servers for the tests: an ASGI app that listens at a free port, with troubles to order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from rsd_engine import Engine
from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.service import ServerOptions, Service


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The URL of an app while it is served."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.005)
    [found] = server.servers[0].sockets
    try:
        yield f"http://127.0.0.1:{found.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def own_app(engine: Engine, **options: Any) -> Iterator[FastAPI]:
    """The app of `rsd serve` around an engine."""
    made = AsyncEngine(engine)
    service = Service(made, ServerOptions(model_names=("tiny",), **options))
    try:
        yield make_app(service)
        assert service.num_running == 0
    finally:
        made.close()


class Troubled:
    """An app whose next answers at some paths are troubles, in the order of `troubles`.

    A trouble is "hang" (no answer until the client hangs up), "drop" (it closes the connection), a
    status with headers, or an answer's JSON.
    """

    def __init__(self, app: Any, paths: tuple[str, ...]) -> None:
        self.troubles: deque[Any] = deque()
        self.num_calls = 0
        self.hung_up = threading.Event()  # a client has left a call that hung
        self.reached = threading.Event()  # a call has come
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        self.num_calls += 1
        self.reached.set()
        trouble = self.troubles.popleft() if self.troubles else None
        if trouble is None:
            await self._app(scope, receive, send)
        elif trouble == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.hung_up.set()
        elif trouble == "drop":
            start = {"type": "http.response.start", "status": 200}
            await send({**start, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionResetError
        else:
            await _answer(send, *trouble)


async def _answer(send: Any, status: int, body: bytes, headers: dict[bytes, bytes]) -> None:
    await asyncio.sleep(0)
    every = [(b"content-type", b"application/json"), *headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})
