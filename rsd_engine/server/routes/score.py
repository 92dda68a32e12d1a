"""POST /v1/score: process rewards of given steps."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from rsd_engine.outputs import ScoredSolution
from rsd_engine.server.errors import ApiError
from rsd_engine.server.openapi import errors
from rsd_engine.server.protocol.answers import Scores
from rsd_engine.server.protocol.requests import ScoreInput, ScoreRequest
from rsd_engine.server.routes.common import answer_id, now, whole_answer
from rsd_engine.server.service import Service


def score_routes(service: Service) -> APIRouter:
    """The route of rewards."""
    router = APIRouter(tags=["score"])

    @router.post("/v1/score", responses={200: {"model": Scores}, **errors(400, 404, 413, 500, 503)})
    async def score(body: ScoreRequest, request: Request) -> Response:
        """One number for each step; every token is read once."""
        service.check_model(body.model)
        return await whole_answer(request, _score(service, body))

    return router


async def _score(service: Service, body: ScoreRequest) -> dict[str, Any]:
    service.check_open()
    given = body.input if isinstance(body.input, list) else [body.input]
    most = service.options.max_prompts
    if not 1 <= len(given) <= most:
        raise ApiError(400, f"input must have 1 to {most} solutions, got {len(given)}", "input")
    solutions = [_solution(one) for one in given]
    try:
        results = await asyncio.to_thread(service.engine.engine.score, solutions)
    except ValueError as error:
        raise ApiError(400, str(error), "input") from None
    tokens = sum(result.tokens_read for result in results)
    return {
        "id": answer_id("score"),
        "object": "list",
        "created": now(),
        "model": service.model,
        "data": [_scored(index, result) for index, result in enumerate(results)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


def _solution(given: ScoreInput) -> dict[str, Any]:
    """As `Engine.score` takes it; it says what is missing."""
    return given.model_dump(exclude_none=True)


def _scored(index: int, result: ScoredSolution) -> dict[str, Any]:
    return {
        "index": index,
        "object": "score",
        "steps": [step.text for step in result.steps],
        # JSON has no NaN
        "rewards": [r if r == r else None for r in result.rewards],
    }
