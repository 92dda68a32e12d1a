"""OpenAI's own client: whole and streamed, plain and with asyncio, and what becomes of errors.

The same checks run on the app in process, and in the slow part on `rsd serve` in another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.outputs import RequestOutput
from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.service import Service
from tests.server.conftest import OPTIONS, LiveServer
from tests.server.served import MODEL
from tests.server.test_chat import QUESTIONS, conversation

Ask = Callable[[openai.AsyncOpenAI], Awaitable[Any]]
THRESHOLD = 0.8
FIELDS: dict[str, Any] = {
    "model": MODEL,
    "messages": conversation(QUESTIONS[0]),
    "temperature": 0,
    "extra_body": {"rsd": {"threshold": THRESHOLD, "steps": True}, "return_token_ids": True},
}


class Checks:
    """What the client sees; subclasses say of which server."""

    @pytest.fixture
    def wanted(self, engine: Engine) -> RequestOutput:
        params = SamplingParams(temperature=0.0, max_tokens=None, policy=Threshold(THRESHOLD))
        return engine.chat(FIELDS["messages"], params, use_tqdm=False)[0]

    @pytest.fixture
    def plain(self) -> Iterator[openai.OpenAI]:
        raise NotImplementedError

    def make_async(self) -> openai.AsyncOpenAI:
        raise NotImplementedError

    def with_asyncio(self, ask: Ask) -> Any:
        async def run() -> Any:
            async with self.make_async() as client:
                return await ask(client)

        return asyncio.run(run())

    def check_answer(self, answer: Any, wanted: RequestOutput) -> None:
        [choice], [output] = answer.choices, wanted.outputs
        assert choice.message.content == output.text
        assert choice.message.role == "assistant"
        assert choice.finish_reason == output.finish_reason
        assert answer.model == MODEL
        assert answer.usage.completion_tokens == len(output.token_ids)
        details = answer.usage.completion_tokens_details
        assert details.accepted_prediction_tokens == wanted.metrics.draft.tokens_generated
        assert details.rejected_prediction_tokens == wanted.metrics.draft.tokens_discarded
        # What OpenAI does not have survives.
        assert choice.token_ids == list(output.token_ids)
        assert answer.prompt_token_ids == list(wanted.prompt_token_ids)
        steps = answer.rsd["choices"][0]["steps"]
        assert [step["text"] for step in steps] == [step.text for step in output.steps]
        scored = wanted.metrics.steps_accepted + wanted.metrics.steps_rejected
        assert answer.metrics["speculative_decoding"]["num_spec_steps"] == scored > 0

    def check_chunks(self, chunks: list[Any], wanted: RequestOutput) -> None:
        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(texts) == wanted.outputs[0].text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == len(wanted.outputs[0].token_ids)
        reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert reasons == [wanted.outputs[0].finish_reason]
        extras = [chunk.model_extra or {} for chunk in chunks]
        kept = [e["rsd"]["step"]["text"] for e in extras if "rsd" in e]
        assert len(kept) == len(wanted.outputs[0].steps) + wanted.metrics.steps_rejected

    def test_plain(self, plain: openai.OpenAI, wanted: RequestOutput) -> None:
        self.check_answer(plain.chat.completions.create(**FIELDS), wanted)
        options: Any = {"include_usage": True}
        stream = plain.chat.completions.create(**FIELDS, stream=True, stream_options=options)
        self.check_chunks(list(stream), wanted)
        raw = plain.chat.completions.with_raw_response.create(
            **FIELDS, extra_headers={"X-Request-Id": "mine"}
        )
        assert raw.headers["X-Request-Id"] == "mine"

    def test_with_asyncio(self, wanted: RequestOutput) -> None:
        async def whole(client: openai.AsyncOpenAI) -> Any:
            return await client.chat.completions.create(**FIELDS)

        async def streamed(client: openai.AsyncOpenAI) -> list[Any]:
            options: Any = {"include_usage": True}
            stream = await client.chat.completions.create(
                **FIELDS, stream=True, stream_options=options
            )
            return [chunk async for chunk in stream]

        self.check_answer(self.with_asyncio(whole), wanted)
        self.check_chunks(self.with_asyncio(streamed), wanted)

    def test_completions(self, plain: openai.OpenAI, engine: Engine) -> None:
        prompts = ["Tom has 3 apples.", "The answer is"]
        params = SamplingParams(temperature=0.7, seed=3, n=2, max_tokens=9)
        results = engine.generate(prompts, params, use_tqdm=False)
        fields: dict[str, Any] = {
            "model": MODEL, "prompt": prompts, "temperature": 0.7, "seed": 3, "n": 2,
            "max_tokens": 9,
        }  # fmt: skip
        answer = plain.completions.create(**fields)
        wanted = [output.text for result in results for output in result.outputs]
        assert [choice.text for choice in answer.choices] == wanted
        texts = [""] * 4
        for chunk in plain.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == wanted

    def test_models(self, plain: openai.OpenAI) -> None:
        assert MODEL in [model.id for model in plain.models.list()]
        assert plain.models.retrieve(MODEL).owned_by == "rsd-engine"

    @pytest.mark.parametrize(
        ("fields", "kind", "param"),
        [
            ({"model": "nobody"}, openai.NotFoundError, "model"),
            ({"temperature": -1}, openai.BadRequestError, "temperature"),
            ({"messages": []}, openai.BadRequestError, None),
            ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_errors_have_their_kind(
        self,
        plain: openai.OpenAI,
        fields: dict[str, Any],
        kind: type[openai.APIStatusError],
        param: str | None,
        *,
        stream: bool,
    ) -> None:
        with pytest.raises(kind) as caught:
            plain.chat.completions.create(**{**FIELDS, **fields}, stream=stream)
        assert caught.value.param == param
        assert caught.value.type == kind.__name__
        assert "\n" not in caught.value.body["message"]  # type: ignore[index]


class TestInProcess(Checks):
    """On the app itself."""

    @pytest.fixture(autouse=True)
    def app(self, async_engine: AsyncEngine) -> Iterator[FastAPI]:
        service = Service(async_engine, replace(OPTIONS, model_names=(MODEL,)))
        self.made = make_app(service)
        yield self.made
        assert service.num_running == service.num_waiting == 0

    @pytest.fixture
    def plain(self) -> Iterator[openai.OpenAI]:
        with TestClient(self.made) as transport:
            yield openai.OpenAI(
                base_url="http://testserver/v1", api_key="EMPTY", http_client=transport
            )

    def make_async(self) -> openai.AsyncOpenAI:
        transport: Any = httpx.AsyncClient(transport=httpx.ASGITransport(self.made))
        return openai.AsyncOpenAI(
            base_url="http://testserver/v1", api_key="EMPTY", http_client=transport
        )


@pytest.mark.slow
class TestLive(Checks):
    """On a server in another process."""

    @pytest.fixture(autouse=True)
    def address(self, served: str) -> None:
        self.url = f"{served}/v1"

    @pytest.fixture
    def plain(self) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=self.url, api_key="EMPTY") as client:
            yield client

    def make_async(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="EMPTY")


@pytest.mark.parametrize(("key", "opens"), [("one", True), ("three", False)])
def test_keys(async_engine: AsyncEngine, key: str, *, opens: bool) -> None:
    service = Service(async_engine, replace(OPTIONS, api_keys=("one", "two")))
    with TestClient(make_app(service)) as transport:
        client = openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=transport)
        if opens:
            assert [model.id for model in client.models.list()] == ["demo", "other-name"]
            return
        with pytest.raises(openai.AuthenticationError, match="Bearer"):
            client.models.list()


def test_a_full_server_is_asked_again(async_engine: AsyncEngine) -> None:
    service = Service(async_engine, replace(OPTIONS, max_queue=0))
    with TestClient(make_app(service)) as transport:
        client = openai.OpenAI(
            base_url="http://testserver/v1", api_key="-", http_client=transport, max_retries=1
        )
        with pytest.raises(openai.InternalServerError, match="queue is full") as caught:
            client.completions.create(model="demo", prompt="a", n=5)
    assert caught.value.status_code == 503
    assert 'admission_rejections_total{model_name="demo"} 2.0' in service.metrics.text().decode()


def test_an_error_ends_a_stream_that_has_begun(live: LiveServer) -> None:
    """The engine drops the request while its text comes."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="EMPTY") as client:
        stream = client.completions.create(
            model="demo",
            prompt="The answer",
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True, "rsd": {"mode": "target"}},
        )
        texts = []
        with pytest.raises(openai.APIError, match="stopped before the request ended"):
            for chunk in stream:
                texts += [choice.text for choice in chunk.choices]
                live.service.engine.abort_all()
    assert "".join(texts)
