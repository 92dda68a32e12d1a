"""A fake server, and one of the demo family."""

from __future__ import annotations

from tests.client.conftest import fake
from tests.server.conftest import async_engine, engine, live

__all__ = ["async_engine", "engine", "fake", "live"]
