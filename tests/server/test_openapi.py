"""Whatever `/openapi.json` allows or forbids: no 500, no hang, and the answer is one it names.

Nothing is faked: the engine has a short context, so that outputs end after few tokens, and the
server's limits of prompts and samples are low.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rsd_engine import Engine
from rsd_engine.demo import checkpoint_dir
from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.service import ServerOptions, Service

NO_LONGER_THAN = 10_000  # milliseconds, for one answer
MAX_MODEL_LEN = 48
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
UNFIT = (
    "model", "suffix", "best_of", "tools", "tool_choice", "response_format", "chat_template",
    "min_tokens", "allowed_token_ids", "logit_bias", "stop",
)  # fmt: skip
BARE = {  # they take nothing
    "/v1/models", "/ping", "/health", "/ready", "/version", "/metrics", "/reset_prefix_cache",
}  # fmt: skip
POSTS = {"/v1/chat/completions", "/v1/completions", "/v1/score", "/tokenize", "/detokenize"}


@pytest.fixture(scope="module")
def short_app() -> Iterator[FastAPI]:
    sources = [checkpoint_dir(role) for role in ("draft", "target", "prm")]
    with Engine(*sources, device="cpu", max_num_seqs=4, max_model_len=MAX_MODEL_LEN) as engine:
        async_engine = AsyncEngine(engine)
        options = ServerOptions(model_names=("demo",), max_prompts=4, max_samples=2)
        service = Service(async_engine, options)
        yield make_app(service)
        assert service.num_running == service.num_waiting == async_engine.num_open == 0
        assert not engine.check_integrity()
        async_engine.close()


@pytest.fixture(scope="module")
def operations(short_app: FastAPI) -> dict[str, Any]:
    """Every operation of the document, by its path."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", short_app)
    found = [op.ok() for op in schema.get_all_operations() if isinstance(op, Ok)]
    assert len({operation.path for operation in found}) == len(found)
    return {operation.path: operation for operation in found}


def fitting(case: schemathesis.Case) -> schemathesis.Case:
    """The same request, less what the document cannot know, so that the engine has to work."""
    body: Any = case.body
    if not isinstance(body, dict):
        return case
    for name in UNFIT:
        body.pop(name, None)
    body["truncate_prompt_tokens"] = 20
    if body.get("n"):
        body["n"] = 1 + body["n"] % 2
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if body.get("rsd"):
        body["rsd"] = {"steps": True, "threshold": 0.9, "max_step_tokens": 8}
    for message in body.get("messages") or ():
        message.update(role="user", content=message.get("content") or "Hi")
    for name in ("prompt", "tokens"):
        if name in body:
            body[name] = known_ids(body[name])
    if "input" in body:
        body["input"] = {"question": "2 + 3 =", "steps": str(body["input"])[:20]}
    return case


def known_ids(value: Any) -> Any:
    """Ids of the demo's vocabulary, in lists that are not too long."""
    if isinstance(value, list):
        return [known_ids(item) for item in value[:4]]
    return value if isinstance(value, str) else int(value) % 900


def answers_to(
    cases: st.SearchStrategy[schemathesis.Case], examples: int, checks: list[Any]
) -> Counter[int]:
    """Asks all of them, and counts the answers by their status."""
    seen: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        deadline=NO_LONGER_THAN,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case: schemathesis.Case) -> None:
        answer = case.call()
        case.validate_response(answer, checks=checks)
        seen[answer.status_code] += 1

    ask()
    return seen


def check_operation(operation: Any, examples: int) -> None:
    """Requests of three kinds: as the document allows, as it forbids, and ones that fit."""
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    forbidden = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    answers_to(allowed, examples, CHECKS)
    assert answers_to(forbidden, examples, CHECKS)[200] == 0
    fitted = answers_to(allowed.map(fitting), examples, CHECKS)
    assert fitted[200] >= examples / 3


def test_the_document_has_every_operation(operations: dict[str, Any]) -> None:
    assert set(operations) == BARE | POSTS | {"/v1/models/{name}"}


@pytest.mark.parametrize("path", sorted(BARE))
def test_what_takes_nothing(operations: dict[str, Any], path: str) -> None:
    """There is one request of each."""
    cases = operations[path].as_strategy(generation_mode=GenerationMode.POSITIVE)
    assert answers_to(cases, 5, CHECKS) == {200: 1}


def test_names_of_models(operations: dict[str, Any]) -> None:
    operation = operations["/v1/models/{name}"]
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    assert answers_to(cases, 50, CHECKS) == {404: 50}


@pytest.mark.parametrize("path", sorted(POSTS))
def test_every_operation(operations: dict[str, Any], path: str) -> None:
    check_operation(operations[path], examples=20)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(POSTS))
def test_every_operation_for_long(operations: dict[str, Any], path: str) -> None:
    check_operation(operations[path], examples=250)
