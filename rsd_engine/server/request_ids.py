"""Gives every request an id, which its answer and its line in the log carry."""

from __future__ import annotations

import json
import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("rsd_engine.server.requests")

HEADER = "X-Request-Id"
_MOST_LETTERS = 128  # of an id that is taken from the client


class RequestIds:
    """Middleware that sets `request.state.request_id`, and logs what was answered with an error.

    A request that is answered is logged by who answers it, with what it took.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _id_of(Headers(scope=scope).get(HEADER, ""))
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
                if message["status"] >= 400:
                    line = {
                        "request_id": request_id,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": message["status"],
                        "seconds": time.perf_counter() - started,
                    }
                    logger.info("%s", json.dumps(line))
            await send(message)

        await self._app(scope, receive, send_with_id)


def _id_of(given: str) -> str:
    """The client's id if it has a sane one, else a new one."""
    sane = 0 < len(given) <= _MOST_LETTERS and given.isascii() and given.isprintable()
    return given if sane else uuid.uuid4().hex
