"""What `/openapi.json` says beyond the bodies of requests: answers, errors, keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rsd_engine.server.auth import OPEN_PATHS
from rsd_engine.server.protocol.answers import ChatChunk, CompletionChunk, ErrorAnswer

Responses = dict[int | str, dict[str, Any]]

_SCHEMA = "#/components/schemas/{model}"
_MEANINGS = {
    400: "A field is not allowed; the message says what is.",
    401: "No key of this server came with the request.",
    404: "The model is not served here.",
    413: "The body is too large.",
    500: "The request failed.",
    502: "The server of one of the models failed.",
    503: "The queue is full, the server is about to stop, or the engine has failed.",
}


def errors(*statuses: int) -> Responses:
    """The errors that a route may answer with, beside those of every body."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


def streamed(model: type[BaseModel], chunk: type[BaseModel]) -> Responses:
    """An answer that comes whole, or as events of `chunk` if the request says `stream`."""
    told = {"anyOf": [_reference(chunk), _reference(ErrorAnswer)]}
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": told}
    data = {"anyOf": [{"const": "[DONE]"}, text]}
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    content = {"text/event-stream": {"itemSchema": event}}
    return {200: {"model": model, "description": "The answer.", "content": content}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMA.format(model=model.__name__)}


class DescribedApp(FastAPI):
    """FastAPI, with keys and chunks, and without the answer 422, which this server does not give.

    Args:
        needs_key: whether requests must bring one.
        given: FastAPI's arguments.
    """

    def __init__(self, *, needs_key: bool, **given: Any) -> None:
        super().__init__(**given)
        self._needs_key = needs_key

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    self._correct(path, operation)
            _, chunks = models_json_schema(
                [(ChatChunk, "serialization"), (CompletionChunk, "serialization")],
                ref_template=_SCHEMA,
            )
            schemas.update(chunks["$defs"])
            if self._needs_key:
                bearer = {"type": "http", "scheme": "bearer"}
                document["components"]["securitySchemes"] = {"key": bearer}
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _correct(self, path: str, operation: dict[str, Any]) -> None:
        found = operation["responses"]
        found.pop("422", None)
        if self._needs_key and path not in OPEN_PATHS:
            content = {"application/json": {"schema": _reference(ErrorAnswer)}}
            found["401"] = {"description": _MEANINGS[401], "content": content}
            operation["security"] = [{"key": []}]
