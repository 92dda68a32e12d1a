"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rsd_engine.arguments import shown

logger = logging.getLogger("rsd_engine.server")

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    500: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
}
_UNREADABLE = (  # what reading JSON raises, the narrower kinds first
    (RecursionError, "it is nested too deeply"),
    (UnicodeError, "it is not UTF-8"),
    (ValueError, "a number has too many digits"),
)
_MOST_LETTERS = 500  # of a message
_MOST_IN_NAME = 64  # letters of a field's name in it
_MOST_NAMES = 4  # of fields within fields


class ApiError(Exception):
    """An answer that is not the one asked for.

    Args:
        status: of HTTP.
        message: one line for people.
        param: the field at fault.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The answer's body, also an event of a stream that has begun."""
    kind = _TYPES.get(status) or HTTPStatus(status).phrase.title().replace(" ", "") + "Error"
    return {"error": {"message": _line(message), "type": kind, "param": param, "code": status}}


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse(error_body(status, message, param), status, dict(headers or {}))


def add_error_handlers(app: FastAPI) -> None:
    """Gives every error of the app this shape."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error.status, error.message, error.param, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(400, *_first_problem(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        found = _why_unreadable(error.__cause__) or str(error.detail)
        return error_response(error.status_code, found, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(500, "the server failed; its log says why")


def _first_problem(error: RequestValidationError) -> tuple[str, str | None]:
    """The first field that is not allowed, and what is wrong with it."""
    problem = error.errors()[0]
    names = [_name(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return "the body is not JSON: " + str(problem.get("ctx", {}).get("error", "")), None
    if not names:
        return "the body must be a JSON object, with Content-Type: application/json", None
    param, where = names[0], ".".join(names[:_MOST_NAMES])
    return f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}", param


def _line(message: str) -> str:
    """The message on one line, and not longer than anybody reads: some repeat what was sent."""
    line = " ".join(message.split())
    return line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..."


def _name(part: object) -> str:
    """A field's name, which a client may have made up, for a message of one line."""
    name = str(part)
    return name if name.isprintable() and len(name) <= _MOST_IN_NAME else shown(name)


def _why_unreadable(cause: BaseException | None) -> str | None:
    """Why FastAPI could not read a body; None if that is not what happened."""
    found = [why for kind, why in _UNREADABLE if isinstance(cause, kind)]
    return f"the body is not JSON that can be read: {found[0]}" if found else None
