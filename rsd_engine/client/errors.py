"""What went wrong between us and a server, in one line."""

from __future__ import annotations

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError


def error_text(error: Exception) -> str:
    """The server's own words, or why there are none."""
    if not isinstance(error, APIError):
        return f"the server sent what is no answer: {type(error).__name__}: {error}"
    if isinstance(error, APITimeoutError):
        return "the server did not answer in time"
    if isinstance(error, APIConnectionError):
        return f"cannot reach the server: {error.__cause__ or error.message}"
    said = " ".join(_message(error).split())
    if isinstance(error, APIStatusError):
        where = f" at {error.request.url}" if error.status_code == 404 else ""
        return f"the server answered {error.status_code}{where}: {said}"
    return f"the server failed: {said}"


def _message(error: APIError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message
