"""Chats by way of the server say what `Engine.chat` says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from rsd_engine.demo.problems import generate
from rsd_engine.server.protocol.answers import ChatChunk, CompletionChunk, ErrorAnswer
from tests.server.conftest import Client

PATH = "/v1/chat/completions"
CHUNK: TypeAdapter[object] = TypeAdapter(ChatChunk | CompletionChunk | ErrorAnswer)
QUESTIONS = [problem.question for problem in generate(5, "test", 3)]


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def events_of(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream, which are as `/openapi.json` has them and end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data")]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        CHUNK.validate_json(line, strict=True)
    return [json.loads(line) for line in lines[:-1]]


def by_engine(engine: Engine, params: SamplingParams) -> list[RequestOutput]:
    return engine.chat([conversation(q) for q in QUESTIONS], params, use_tqdm=False)


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"temperature": 0}, SamplingParams(temperature=0.0, max_tokens=None)),
        (
            {"temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 2, "max_tokens": 40},
            SamplingParams(temperature=0.8, top_p=0.9, seed=7, n=2, max_tokens=40),
        ),
        (
            {"temperature": 0, "rsd": {"mode": "target"}, "max_completion_tokens": 12},
            SamplingParams(temperature=0.0, mode="target", max_tokens=12),
        ),
        (
            {"temperature": 0, "rsd": {"threshold": 2}, "stop": ["="]},
            SamplingParams(temperature=0.0, policy=Threshold(2.0), stop=["="], max_tokens=None),
        ),
    ],
)
def test_a_chat_is_what_the_engine_says(
    client: Client, engine: Engine, fields: dict[str, Any], params: SamplingParams
) -> None:
    for question, result in zip(QUESTIONS, by_engine(engine, params), strict=True):
        body = {"model": "demo", "messages": conversation(question), **fields}
        answer = client.post(PATH, body).json()
        assert [c["message"]["content"] for c in answer["choices"]] == [
            o.text for o in result.outputs
        ]
        assert [c["finish_reason"] for c in answer["choices"]] == [
            o.finish_reason for o in result.outputs
        ]
        tokens = sum(len(o.token_ids) for o in result.outputs)
        assert answer["usage"]["prompt_tokens"] == len(result.prompt_token_ids)
        assert answer["usage"]["completion_tokens"] == tokens
        assert answer["usage"]["total_tokens"] == tokens + len(result.prompt_token_ids)
        streamed = client.post(PATH, {**body, "stream": True}).text
        texts = ["" for _ in result.outputs]
        reasons = {}
        for chunk in events_of(streamed):
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
                if choice["finish_reason"]:
                    reasons[choice["index"]] = choice["finish_reason"]
        assert texts == [o.text for o in result.outputs]
        assert reasons == {o.index: o.finish_reason for o in result.outputs}


def test_predictions_are_the_drafts_tokens(client: Client, engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=None)
    rejected = 0
    for question, result in zip(QUESTIONS, by_engine(engine, params), strict=True):
        body = {"messages": conversation(question), "temperature": 0, "rsd": {"steps": True}}
        answer = client.post(PATH, body).json()
        draft = result.metrics.draft
        assert answer["usage"]["completion_tokens_details"] == {
            "accepted_prediction_tokens": draft.tokens_generated,
            "rejected_prediction_tokens": draft.tokens_discarded,
        }
        found = answer["metrics"]["speculative_decoding"]
        assert found["num_spec_steps"] == (
            result.metrics.steps_accepted + result.metrics.steps_rejected
        )
        assert found["num_draft_tokens"] == draft.tokens_generated + draft.tokens_discarded
        [shown] = answer["rsd"]["choices"]
        assert [step["text"] for step in shown["steps"]] == [
            step.text for step in result.outputs[0].steps
        ]
        assert [step["source"] for step in shown["steps"]] == [
            step.source for step in result.outputs[0].steps
        ]
        rejected += sum(step["rejected"] is not None for step in shown["steps"])
    assert rejected > 0


def test_a_stream_shows_steps_and_usage_if_asked(client: Client) -> None:
    body = {
        "messages": conversation(QUESTIONS[0]),
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "rsd": {"steps": True, "threshold": 2},
    }
    chunks = events_of(client.post(PATH, body).text)
    steps = [chunk["rsd"]["step"] for chunk in chunks if "rsd" in chunk]
    kinds = [step["kind"] for step in steps]
    assert kinds == ["rejected", "kept"] * (len(kinds) // 2)
    assert {step["source"] for step in steps if step["kind"] == "kept"} == {"target"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 0
    assert chunks[-1]["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] > 0


def test_logprobs_have_a_place_for_every_token(client: Client) -> None:
    body = {
        "messages": conversation(QUESTIONS[0]),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
        "max_tokens": 6,
    }
    answer = client.post(PATH, body).json()
    [choice] = answer["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert all(len(entry["top_logprobs"]) in (3, 4) for entry in content)
    assert all(entry["logprob"] <= 0 for entry in content)


def test_the_conversation_may_go_on_with_the_last_message(client: Client, engine: Engine) -> None:
    messages = [*conversation(QUESTIONS[0]), {"role": "assistant", "content": "The answer"}]
    body = {"messages": messages, "continue_final_message": True, "temperature": 0}
    [result] = engine.chat(
        messages,
        SamplingParams(temperature=0.0, max_tokens=None),
        use_tqdm=False,
        continue_final_message=True,
    )
    answer = client.post(PATH, body).json()
    assert answer["choices"][0]["message"]["content"] == result.outputs[0].text
