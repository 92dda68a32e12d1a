"""Runs the app until a signal asks it to stop, then lets running requests end."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from rsd_engine.server.service import Service

logger = logging.getLogger("rsd_engine.server")

# Seconds until a connection at rest is closed. Whoever keeps it open should close it first, or his
# next request meets the end of it: HTTP clients do after 5 seconds, load balancers after 60.
_KEEP_ALIVE = 75
_GRACE = 5.0  # seconds to send the ends of requests that took too long
_LOOK = 0.02  # seconds between two looks at whether all requests have ended


class Server(uvicorn.Server):
    """uvicorn with a deadline: what still runs then ends with a clean error.

    Args:
        app: see `make_app`.
        service: behind it.
        host: address to listen at.
        port: of it; 0 takes a free one.
    """

    def __init__(self, app: FastAPI, service: Service, *, host: str, port: int) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At a signal: no new requests; a second one does not wait for the others."""
        self._service.draining = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does it, which raises every signal again at the end, for the next handler.

        A SIGTERM has been obeyed by then: the process goes on, closes its engine and ends well.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(signal.SIGTERM, before)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for running requests, at most `drain_seconds`, then closes the connections.

        Until then it listens: who comes meanwhile is told that the server is about to stop, where
        a closed socket would reset his connection.
        """
        started, seconds = time.monotonic(), self._service.options.drain_seconds
        while self._service.num_running and not self.force_exit:
            if time.monotonic() - started >= seconds:
                left = self._service.engine.num_open
                logger.warning("%d requests did not end in time and are aborted", left)
                self._service.engine.abort_all()
                break
            await asyncio.sleep(_LOOK)
        spent = time.monotonic() - started
        self.config.timeout_graceful_shutdown = math.ceil(max(seconds - spent, 0.0) + _GRACE)
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for address in (listening.getsockname() for listening in server.sockets):
                logger.info("serving %s at http://%s:%d", self._service.model, *address[:2])
