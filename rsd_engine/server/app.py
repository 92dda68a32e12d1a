"""Puts the server together: routes, errors, keys, limits."""

from __future__ import annotations

from fastapi import FastAPI

import rsd_engine
from rsd_engine.server.auth import BearerAuth
from rsd_engine.server.body_limit import BodyLimit
from rsd_engine.server.errors import add_error_handlers
from rsd_engine.server.openapi import DescribedApp
from rsd_engine.server.request_ids import RequestIds
from rsd_engine.server.routes.chat import chat_routes
from rsd_engine.server.routes.completions import completion_routes
from rsd_engine.server.routes.facts import fact_routes
from rsd_engine.server.routes.score import score_routes
from rsd_engine.server.routes.tokens import token_routes
from rsd_engine.server.service import Service


def make_app(service: Service) -> FastAPI:
    """The ASGI app of a service. It closes neither service nor engine.

    >>> engine = AsyncEngine(Engine(draft, target, prm))
    >>> app = make_app(Service(engine, ServerOptions(model_names=("my-model",))))
    """
    options = service.options
    app = DescribedApp(
        title="rsd-engine", version=rsd_engine.__version__, needs_key=bool(options.api_keys)
    )
    for routes in (chat_routes, completion_routes, fact_routes, score_routes, token_routes):
        app.include_router(routes(service))
    add_error_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    if options.api_keys:
        app.add_middleware(BearerAuth, keys=options.api_keys)
    app.add_middleware(RequestIds)  # the last one added is the first to see a request
    return app
