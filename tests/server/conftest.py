"""A server of the demo family: its app for quick tests, and one that listens at a port."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from rsd_engine import Engine
from rsd_engine.demo import checkpoint_dir
from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.run import Server
from rsd_engine.server.service import ServerOptions, Service
from tests.server.served import serving

OPTIONS = ServerOptions(model_names=("demo", "other-name"), max_queue=64, max_samples=8)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    draft, target, prm = (checkpoint_dir(role) for role in ("draft", "target", "prm"))
    with Engine(draft, target, prm, device="cpu", max_num_seqs=4, max_guesses=16) as built:
        yield built


@pytest.fixture(scope="session")
def async_engine(engine: Engine) -> Iterator[AsyncEngine]:
    built = AsyncEngine(engine)
    yield built
    built.close()


@pytest.fixture
def service(async_engine: AsyncEngine) -> Iterator[Service]:
    """A service of its own for each test; nothing runs or waits when the test ends."""
    made = Service(async_engine, OPTIONS)
    yield made
    assert made.num_running == made.num_waiting == 0
    assert async_engine.num_open == 0


@pytest.fixture
def app(service: Service) -> FastAPI:
    return make_app(service)


class Client:
    """Asks the app in process, without asyncio in the tests."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self._ask("GET", path, more)

    def post(self, path: str, body: object = None, **more: Any) -> httpx.Response:
        """The body goes as JSON with escapes, which may spell what UTF-8 cannot."""
        if body is not None:
            more["content"] = json.dumps(body)
            more["headers"] = {"Content-Type": "application/json", **more.get("headers", {})}
        return self._ask("POST", path, more)

    def _ask(self, method: str, path: str, more: dict[str, Any]) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://rsd") as client:
                return await client.request(method, path, timeout=60, **more)

        return asyncio.run(ask())


@pytest.fixture
def client(app: FastAPI) -> Client:
    return Client(app)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `rsd serve` in a process of its own, one for all tests."""
    with serving(tmp_path_factory.mktemp("served")) as address:
        yield address


@dataclass(frozen=True)
class LiveServer:
    """A server that listens at a free port."""

    url: str
    service: Service
    server: Server


@contextmanager
def listening(async_engine: AsyncEngine, options: ServerOptions) -> Iterator[LiveServer]:
    """A server in a thread of its own, until the block ends."""
    service = Service(async_engine, options)
    server = Server(make_app(service), service, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    [found] = server.servers[0].sockets
    yield LiveServer(f"http://127.0.0.1:{found.getsockname()[1]}", service, server)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def live(async_engine: AsyncEngine) -> Iterator[LiveServer]:
    options = replace(OPTIONS, keep_alive_seconds=0.005, drain_seconds=2.0)
    with listening(async_engine, options) as server:
        yield server
