"""What the routes of both kinds of completion do alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from rsd_engine.server.streaming import ClientGone, unless_gone

CLIENT_GONE = 499  # nobody reads the answer; the code is for the log


def request_id(request: Request) -> str:
    """The id that `RequestIds` gave it."""
    return str(request.state.request_id)


def answer_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


async def whole_answer(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """The answer in one piece; the work ends with its client."""
    try:
        return JSONResponse(await unless_gone(request, work))
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
