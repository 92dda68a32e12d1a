"""POST /tokenize and /detokenize"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from rsd_engine.arguments import check_text
from rsd_engine.server.errors import ApiError
from rsd_engine.server.openapi import errors
from rsd_engine.server.protocol.answers import Text, Tokens
from rsd_engine.server.protocol.requests import DetokenizeRequest, TokenizeRequest
from rsd_engine.server.service import Service


def token_routes(service: Service) -> APIRouter:
    """The routes of the tokenizer."""
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize", responses=errors(400, 404, 413))
    async def tokenize(body: TokenizeRequest) -> Tokens:
        """The ids of a prompt."""
        service.check_model(body.model)
        try:
            check_text("prompt", body.prompt)
        except ValueError as error:
            raise ApiError(400, str(error), "prompt") from None
        tokenizer = service.engine.engine.get_tokenizer()
        ids = await asyncio.to_thread(
            tokenizer.encode, body.prompt, add_special_tokens=body.add_special_tokens
        )
        most = service.engine.engine.parts.rules.max_model_len
        return Tokens(tokens=ids, count=len(ids), max_model_len=most)

    @router.post("/detokenize", responses=errors(400, 404, 413))
    async def detokenize(body: DetokenizeRequest) -> Text:
        """The text of ids."""
        service.check_model(body.model)
        tokenizer = service.engine.engine.get_tokenizer()
        beyond = [token for token in body.tokens if token >= len(tokenizer)]
        if beyond:
            raise ApiError(
                400, f"tokens must be in [0, {len(tokenizer) - 1}], got {beyond[0]}", "tokens"
            )
        return Text(prompt=tokenizer.decode(body.tokens))

    return router
