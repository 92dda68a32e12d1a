"""POST /tokenize and /detokenize"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from rsd_engine.arguments import check_text
from rsd_engine.server.errors import ApiError
from rsd_engine.server.protocol.requests import DetokenizeRequest, TokenizeRequest
from rsd_engine.server.service import Service


def token_routes(service: Service) -> APIRouter:
    """The routes of the tokenizer."""
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """The ids of a prompt or a conversation."""
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", "prompt")
        try:
            ids = await service.engine.call(_ids, service, body)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": service.engine.engine.parts.rules.max_model_len,
        }

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of ids."""
        service.check_model(body.model)
        tokenizer = service.engine.engine.get_tokenizer()
        beyond = [token for token in body.tokens if token >= len(tokenizer)]
        if beyond:
            raise ApiError(
                400, f"tokens must be in [0, {len(tokenizer) - 1}], got {beyond[0]}", "tokens"
            )
        return {"prompt": tokenizer.decode(body.tokens)}

    return router


def _ids(service: Service, body: TokenizeRequest) -> list[int]:
    engine = service.engine.engine
    if body.messages is not None:
        return engine.tokenize_chat(body.messages, add_generation_prompt=body.add_generation_prompt)
    check_text("prompt", body.prompt)
    tokenizer = engine.get_tokenizer()
    return list(tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens))
