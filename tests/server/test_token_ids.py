"""`return_token_ids` and `continuous_usage_stats`: tokens beside the text, as vLLM tells them."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams
from tests.server.conftest import Client
from tests.server.test_chat import QUESTIONS, conversation, events_of

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
PROMPTS = ["Tom has 3 apples.", "The answer is"]
MODES: list[dict[str, Any]] = [{"mode": "draft"}, {}, {"threshold": 2}]


def streamed_ids(chunks: list[dict[str, Any]], samples: int) -> list[list[int]]:
    ids: list[list[int]] = [[] for _ in range(samples)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            ids[choice["index"]] += choice.get("token_ids", [])
    return ids


@pytest.mark.parametrize("rsd", MODES)
def test_ids_of_completions(client: Client, engine: Engine, rsd: dict[str, Any]) -> None:
    tokenizer = engine.get_tokenizer()
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    body = {
        "prompt": prompts, "temperature": 0.7, "seed": 3, "n": 2, "max_tokens": 30, "rsd": rsd,
        "return_token_ids": True,
    }  # fmt: skip
    whole = client.post(PLAIN, body).json()
    wanted = [choice["token_ids"] for choice in whole["choices"]]
    assert sum(map(len, wanted)) == whole["usage"]["completion_tokens"] > 0
    assert [choice["prompt_token_ids"] for choice in whole["choices"]] == [
        prompts[0], prompts[0], prompts[1], prompts[1],
    ]  # fmt: skip
    if rsd == MODES[0]:
        params = SamplingParams(temperature=0.7, seed=3, n=2, max_tokens=30, mode="draft")
        results = engine.generate(prompts, params, use_tqdm=False)
        assert wanted == [list(o.token_ids) for result in results for o in result.outputs]
    chunks = events_of(client.post(PLAIN, {**body, "stream": True}).text)
    assert streamed_ids(chunks, 4) == wanted
    given = [
        (choice["index"], choice["prompt_token_ids"])
        for chunk in chunks
        for choice in chunk["choices"]
        if "prompt_token_ids" in choice
    ]
    assert sorted(given) == [(index, prompts[index // 2]) for index in range(4)]


def test_ids_of_chats(client: Client, engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=None)
    messages = conversation(QUESTIONS[0])
    [result] = engine.chat([messages], params, use_tqdm=False)
    body = {"messages": messages, "temperature": 0, "return_token_ids": True}
    answer = client.post(CHAT, body).json()
    assert answer["prompt_token_ids"] == list(result.prompt_token_ids)
    assert answer["choices"][0]["token_ids"] == list(result.outputs[0].token_ids)
    chunks = events_of(client.post(CHAT, {**body, "stream": True}).text)
    assert chunks[0]["prompt_token_ids"] == list(result.prompt_token_ids)
    assert streamed_ids(chunks, 1) == [list(result.outputs[0].token_ids)]


def test_the_prompt_is_the_one_that_was_read(client: Client) -> None:
    body = {"prompt": list(range(10, 20)), "truncate_prompt_tokens": 3, "return_token_ids": True}
    for streams in (False, True):
        answer = client.post(PLAIN, {**body, "stream": streams})
        found = events_of(answer.text)[0] if streams else answer.json()
        assert found["choices"][0]["prompt_token_ids"] == [17, 18, 19]


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_usage_grows_with_the_stream(client: Client, path: str) -> None:
    body = {
        "temperature": 0, "n": 2, "max_tokens": 20, "rsd": {"mode": "target"}, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    body |= {"messages": conversation("a")} if path == CHAT else {"prompt": PROMPTS}
    chunks = events_of(client.post(path, body).text)
    samples = 2 if path == CHAT else 4
    written = [0] * samples
    for chunk in chunks[:-1]:
        [index] = [choice["index"] for choice in chunk["choices"]]
        usage = chunk["usage"]
        assert usage["completion_tokens"] >= written[index]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        written[index] = usage["completion_tokens"]
    assert len(chunks) > 10
    assert sum(written) == chunks[-1]["usage"]["completion_tokens"]


def test_without_the_options_there_is_neither(client: Client) -> None:
    for path, body in ((CHAT, {"messages": conversation("a")}), (PLAIN, {"prompt": "a"})):
        text = client.post(path, {**body, "max_tokens": 3, "stream": True}).text
        text += client.post(path, {**body, "max_tokens": 3}).text
        assert "token_ids" not in text
        assert text.count('"usage"') == 1
