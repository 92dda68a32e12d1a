"""What is served, whether it works, how it does: models, health, version, metrics, the cache."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

import rsd_engine
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.server.errors import ApiError
from rsd_engine.server.openapi import Responses, errors
from rsd_engine.server.protocol.answers import Model, Models, Version
from rsd_engine.server.service import Service

_METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
READY_SECONDS = 10.0  # that a probe waits for its token


def fact_routes(service: Service) -> APIRouter:
    """The routes that tell about the server."""
    router = APIRouter(tags=["facts"])

    @router.get("/v1/models")
    async def list_models() -> Models:
        """The names that requests may give."""
        names = service.options.model_names
        return Models(object="list", data=[_model(service, name) for name in names])

    @router.get("/v1/models/{name:path}", responses=errors(404))
    async def show_model(name: str) -> Model:
        """One of them."""
        service.check_model(name)
        return _model(service, name)

    @router.get("/health", response_class=Response, responses=errors(503))
    @router.get("/ping", response_class=Response, responses=errors(503))
    async def health() -> Response:
        """200 while the engine is alive."""
        service.check_health()
        return Response()

    @router.get("/ready", response_class=Response, responses=errors(503))
    async def ready() -> Response:
        """200 if the engine has just written a token."""
        await _write_a_token(service)
        return Response()

    @router.get("/version")
    async def version() -> Version:
        """Of rsd-engine."""
        return Version(version=rsd_engine.__version__)

    @router.get("/metrics", response_class=Response, responses=_METRICS)
    async def metrics() -> Response:
        """For Prometheus."""
        pages = service.engine.page_share
        service.metrics.set_load(service.num_running, service.num_waiting, pages)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/reset_prefix_cache", response_class=Response, responses=errors(503))
    async def reset_prefix_cache() -> Response:
        """Prompts to come are read from their beginning; what runs goes on."""
        service.check_open()
        await asyncio.to_thread(service.engine.engine.reset_prefix_cache)
        return Response()

    return router


def _model(service: Service, name: str) -> Model:
    return Model(
        id=name,
        object="model",
        created=service.created,
        owned_by="rsd-engine",
        root=service.model,
        max_model_len=service.engine.engine.parts.rules.max_model_len,
    )


async def _write_a_token(service: Service) -> None:
    service.check_open()
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    try:
        [request] = await service.engine.submit(["1"], params, stream=False)
        result = await asyncio.wait_for(request.result(), READY_SECONDS)
    except ValueError as error:
        raise ApiError(503, f"the engine cannot write: {error}") from None
    except TimeoutError:
        raise ApiError(503, f"no token within {READY_SECONDS:g} seconds") from None
    if result.outputs[0].finish_reason == "error":
        raise ApiError(503, f"the engine cannot write: {result.outputs[0].error}")
