"""What the routes of both kinds of completion do alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.responses import StreamingResponse

from rsd_engine.server.streaming import ClientGone, unless_gone

REQUEST_ID = "X-Request-Id"
_MOST_LETTERS = 128  # of a request id that is echoed
CLIENT_GONE = 499  # nobody reads the answer; the code is for the server's log


def request_id(request: Request) -> str:
    """The client's id if it has a sane one, else a new one."""
    given = request.headers.get(REQUEST_ID, "")
    sane = 0 < len(given) <= _MOST_LETTERS and given.isascii() and given.isprintable()
    return given if sane else uuid.uuid4().hex


def answer_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


async def whole_answer(
    request: Request, own_id: str, work: Coroutine[Any, Any, dict[str, Any]]
) -> Response:
    """The answer in one piece; the work ends with its client."""
    try:
        return JSONResponse(await unless_gone(request, work), headers={REQUEST_ID: own_id})
    except ClientGone:
        return Response(status_code=CLIENT_GONE)


def streamed(response: StreamingResponse, own_id: str) -> StreamingResponse:
    response.headers[REQUEST_ID] = own_id
    return response


Chunk = Callable[..., dict[str, Any]]
