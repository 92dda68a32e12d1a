"""Whatever a client sends: one line that names the field, and never a 500."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI

from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.service import Service
from tests.server.conftest import OPTIONS, Client

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CHAT, {}, 400, "messages"),
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "content"),
        (CHAT, {"messages": [{"role": "user", "content": "a\ud800"}]}, 400, "surrogate"),
        (CHAT, {"messages": HI, "model": "gpt"}, 404, "gpt"),
        (CHAT, {"messages": HI, "temperature": -1}, 400, "temperature"),
        (CHAT, {"messages": HI, "temperature": "hot"}, 400, "temperature"),
        (CHAT, {"messages": HI, "temperature": "0.5"}, 400, "temperature: must be a number"),
        (CHAT, {"messages": HI, "presence_penalty": False}, 400, "presence_penalty: must be a n"),
        (CHAT, {"messages": HI, "n": True}, 400, "n: must be a number"),
        (CHAT, {"messages": HI, "seed": "3"}, 400, "seed: must be a number"),
        (CHAT, {"messages": HI, "logit_bias": {"3": True}}, 400, "logit_bias.3: must be a number"),
        (CHAT, {"messages": HI, "rsd": {"max_steps": "3"}}, 400, "rsd.max_steps: must be a nu"),
        (CHAT, {"messages": HI, "top_p": 0}, 400, "top_p"),
        (CHAT, {"messages": HI, "max_tokens": 10**30}, 400, "max_tokens"),
        (CHAT, {"messages": HI, "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"messages": HI, "seed": 2**70}, 400, "seed"),
        (CHAT, {"messages": HI, "n": 9}, 400, "n must be at most 8"),
        (CHAT, {"messages": HI, "top_logprobs": 3}, 400, "logprobs"),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, 400, "logprobs"),
        (CHAT, {"messages": HI, "stop": [""]}, 400, "stop"),
        (CHAT, {"messages": HI, "logit_bias": {"x": 1}}, 400, "logit_bias"),
        (CHAT, {"messages": HI, "stop_token_ids": [2**40]}, 400, "stop_token_ids"),
        (CHAT, {"messages": HI, "stream_options": {}}, 400, "stream_options"),
        (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, 400, "tools"),
        (CHAT, {"messages": HI, "tool_choice": "auto"}, 400, "tools"),
        (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, 400, "response"),
        (CHAT, {"messages": HI, "chat_template": "{{ 1 }}"}, 400, "chat_template"),
        (CHAT, {"messages": HI, "rsd": {"policy": "x"}}, 400, "policy"),
        (CHAT, {"messages": HI, "rsd": {"policy": "clip", "threshold": 1}}, 400, "threshold"),
        (CHAT, {"messages": HI, "rsd": {"speed": 3}}, 400, "speed"),
        (CHAT, {"messages": HI, "rsd": {"mode": "fast"}}, 400, "mode"),
        (PLAIN, {"prompt": []}, 400, "prompt"),
        (PLAIN, {"prompt": ""}, 400, "empty"),
        (PLAIN, {"prompt": ["a"] * 300}, 400, "at most 256"),
        (PLAIN, {"prompt": [10**9]}, 400, "prompt_token_ids"),
        (PLAIN, {"prompt": [-1]}, 400, "prompt"),
        (PLAIN, {"prompt": [True]}, 400, "prompt"),
        (PLAIN, {"prompt": ["a", [1]]}, 400, "prompt: must be text, token ids"),
        (PLAIN, {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        (PLAIN, {"prompt": "a", "best_of": 4}, 400, "best_of"),
        (PLAIN, {"prompt": "a" * 100_000}, 400, "max_model_len"),
        (PLAIN, {"prompt": "a", "echo": True, "stream": True}, 400, "echo"),
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a\ud800"}, 400, "surrogate"),
        ("/detokenize", {"tokens": [10**8]}, 400, "tokens"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_bad_bodies(
    client: Client, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    for streams in ({}, {"stream": True}):
        if "stream_options" in body and streams:
            continue
        answer = client.post(path, body | streams)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert said in error["message"]
        assert "\n" not in error["message"]
        assert error["code"] == status
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b"", b'{"messages": NaN}'])
def test_bodies_that_are_no_object(client: Client, body: bytes) -> None:
    answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "BadRequestError"


MESSAGES = b'{"messages": [{"role": "user", "content": "Hi"}], '


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (MESSAGES + b'"user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (MESSAGES + b'"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (MESSAGES + b'"seed": ' + b"9" * 4000 + b"}", "seed"),
        (MESSAGES + b'"user": "\xff"}', "not UTF-8"),
        (MESSAGES + b'"rsd": {"a\\nb": 1}}', "a\\nb"),
        (MESSAGES + b'"rsd": {"' + b"x" * 5000 + b'": 1}}', "x..."),
        (MESSAGES + b'"rsd": {"\\ud800": 1}}', "rsd"),
        (MESSAGES + b'"temperature": NaN}', "temperature"),
        (MESSAGES + b'"rsd": {"threshold": NaN}}', "threshold"),
        (MESSAGES + b'"logit_bias": {"3": -Infinity}}', "logit_bias"),
        (MESSAGES + b'"max_tokens": 1e400}', "max_tokens"),
        (MESSAGES + b'"stop": {}}', "stop: must be a string or a list of strings"),
        (b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", "messages"),
        (b'{"messages": [{"a": ' + b"[" * 500 + b"]" * 500 + b"}]}", "depth exceeded"),
        (b'{"messages": [{"role": "a"}, {"' + b"x" * 5000 + b'": 1}]}', "must be text"),
        (b'{"messages": [{"role": "' + b"x" * 5000 + b'", "content": ""}]}', "unknown role"),
    ],
)
def test_odd_json_is_refused_in_one_line(client: Client, body: bytes, said: str) -> None:
    answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert said in message
    assert message.isprintable() and len(message) < 520


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x", "\t"])
def test_another_content_type_is_refused(client: Client, kind: str) -> None:
    answer = client.post(CHAT, content=MESSAGES + b'"n": 1}', headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


def test_the_last_of_equal_keys_counts(client: Client) -> None:
    body = b'{"prompt": "", "prompt": "The answer", "max_tokens": 9, "max_tokens": 2}'
    answer = client.post(PLAIN, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_fields_of_others_are_ignored(client: Client) -> None:
    """Those that clients of OpenAI, vLLM and SGLang send, whatever is in them."""
    body = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "priority": 3,
        "reasoning_effort": "low", "cache_salt": "x", "request_id": "1", "logprobs": None,
        "parallel_tool_calls": True, "prediction": {"type": "content"}, "guided_json": [[]],
    }  # fmt: skip
    for path, own in ((CHAT, {"messages": HI}), (PLAIN, {"prompt": "Hi"})):
        wanted = client.post(path, {**own, "max_tokens": 3}).json()["choices"]
        assert client.post(path, {**body, **own, "max_tokens": 3}).json()["choices"] == wanted


def test_a_body_that_is_too_large_is_not_read(async_engine: AsyncEngine) -> None:
    app = make_app(Service(async_engine, replace(OPTIONS, max_body_bytes=1000)))
    answer = Client(app).post(CHAT, {"messages": HI, "user": "x" * 2000})
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]["message"]


class TestKeys:
    """`Authorization: Bearer`"""

    @pytest.fixture
    def locked(self, async_engine: AsyncEngine) -> FastAPI:
        return make_app(Service(async_engine, replace(OPTIONS, api_keys=("one", "two"))))

    @pytest.mark.parametrize("header", [None, "one", "Bearer", "Bearer three", "Basic one"])
    def test_no_key_no_answer(self, locked: FastAPI, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            answer = Client(locked).get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "AuthenticationError"

    @pytest.mark.parametrize("key", ["one", "two"])
    def test_any_key_opens(self, locked: FastAPI, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        assert Client(locked).get("/v1/models", headers=headers).status_code == 200

    def test_probes_need_none(self, locked: FastAPI) -> None:
        assert Client(locked).get("/health").status_code == 200


def test_a_full_queue_says_when_to_come_back(async_engine: AsyncEngine) -> None:
    service = Service(async_engine, replace(OPTIONS, max_queue=0))
    answer = Client(make_app(service)).post(PLAIN, {"prompt": ["a"] * 5, "max_tokens": 1})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert service.num_running == 0
    assert Client(make_app(service)).post(PLAIN, {"prompt": "a"}).status_code == 200


def test_a_server_about_to_stop_takes_nothing(service: Service, client: Client) -> None:
    service.draining = True
    assert client.post(PLAIN, {"prompt": "a"}).status_code == 503
    assert client.post("/v1/score", {"input": {"question": "a", "steps": ["b"]}}).status_code == 503
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
