"""A replica of a Ray Serve deployment: one engine behind the app of `rsd serve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from rsd_engine.engine.engine import Engine
from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.auth import environment_keys
from rsd_engine.server.errors import ApiError
from rsd_engine.server.service import ServerOptions, Service


class Replica:
    """What Ray Serve starts, asks and ends; as good without Ray.

    Args:
        engine: arguments of `Engine`.
        options: of the server.
    """

    def __init__(self, engine: Mapping[str, Any], options: ServerOptions) -> None:
        self._engine = Engine(**engine)
        self._async_engine = AsyncEngine(self._engine)
        keys = (*options.api_keys, *environment_keys())  # of the builder, and of this machine
        self._service = Service(self._async_engine, replace(options, api_keys=keys))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, for `serve.ingress`: made here, for an engine stays in its process."""
        return make_app(self._service)

    def check_health(self) -> None:
        """Ray Serve puts another replica in place of one that raises three times in a row.

        Raises:
            RuntimeError: the engine has failed.
        """
        try:
            self._service.check_health()
        except ApiError as error:
            raise RuntimeError(error.message) from None

    def __del__(self) -> None:
        """At the end of a replica, when Serve has waited for its requests."""
        if hasattr(self, "_service"):
            self._async_engine.close()
            self._engine.close()
