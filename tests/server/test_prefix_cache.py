"""What the server tells of the prefix cache, and how it is emptied."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine import Engine
from tests.server.conftest import Client
from tests.server.test_chat import QUESTIONS, conversation


def ask(client: Client, mode: str) -> dict[str, Any]:
    """The usage of an answer to the first question."""
    body = {"messages": conversation(QUESTIONS[0]), "temperature": 0, "rsd": {"mode": mode}}
    return dict(client.post("/v1/chat/completions", body).json()["usage"])


def cached(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("mode", ["draft", "target"])
def test_the_second_time_a_prompt_is_found_until_the_cache_is_emptied(
    client: Client, engine: Engine, mode: str
) -> None:
    engine.reset_prefix_cache()
    first, second = ask(client, mode), ask(client, mode)
    assert (cached(first), cached(second)) == (0, second["prompt_tokens"] - 1)
    assert first["completion_tokens"] == second["completion_tokens"]
    answer = client.post("/reset_prefix_cache")
    assert answer.status_code == 200 and not answer.content
    assert cached(ask(client, mode)) == 0
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    asked, hits = (
        float(values[f'rsd:prefix_cache_{name}_total{{model_name="demo"}}'])
        for name in ("queries", "hits")
    )
    assert asked == 3 * first["prompt_tokens"] and hits == cached(second)
