"""`Authorization: Bearer`, for everything but the probes of health."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rsd_engine.server.errors import error_response

OPEN_PATHS = frozenset({"/health", "/ping", "/ready"})
KEYS_VARIABLE = "RSD_API_KEYS"


def environment_keys() -> list[str]:
    """The keys in RSD_API_KEYS, which are separated by commas."""
    return [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]


class BearerAuth:
    """Middleware that answers 401 without one of the keys.

    Keys are compared by digest and in constant time: an answer does not tell how much was right.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._allows(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
            return
        refusal = error_response(
            401,
            "give a key of this server: Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, send)

    def _allows(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        given = _digest(key.strip())
        # All are compared, whichever fits.
        found = [secrets.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
