"""A client of one server, and which of its models is asked."""

from __future__ import annotations

import os

from openai import APIError, AsyncOpenAI, NotFoundError
from openai.types import Model

from rsd_engine.client.errors import error_text

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_CONNECTIONS = 1000  # of OpenAI's client


def open_client(url: str, *, timeout: float = 600.0, max_retries: int = 2) -> AsyncOpenAI:
    """A client of the server at `url`, with the key from the environment.

    Args:
        url: with the version, such as http://127.0.0.1:8000/v1.
        timeout: seconds of silence that fail a request.
        max_retries: of a request that failed.
    """
    key = os.environ.get(KEY_VARIABLE) or "none"  # a server without keys takes any
    return AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=max_retries)


async def find_model(client: AsyncOpenAI, wanted: str | None) -> Model:
    """The model of this name, or the server's first.

    Raises:
        ValueError: the server has no such model.
        ConnectionError: it cannot be reached, or refuses to answer.
    """
    try:
        listed = (await client.models.list()).data
    except NotFoundError as error:
        if wanted is None:
            raise ConnectionError(error_text(error)) from error
        listed = []  # some servers have one model and no list
    except APIError as error:
        raise ConnectionError(error_text(error)) from error
    models = {model.id: model for model in listed}
    if wanted is None and not models:
        raise ValueError(f"the server at {client.base_url} lists no models; name one with --model")
    name = next(iter(models)) if wanted is None else wanted
    if models and name not in models:
        raise ValueError(f"the server at {client.base_url} has {list(models)}, no model {name!r}")
    return models.get(name) or Model(id=name, created=0, object="model", owned_by="")
