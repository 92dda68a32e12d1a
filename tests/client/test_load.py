"""Requests to a server whose answers take known times."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from rsd_engine.client.arrivals import arrivals
from rsd_engine.client.connect import find_model, open_client
from rsd_engine.client.load import Load, run_load, warm_up
from rsd_engine.client.request import Answer, Endpoint, Target
from rsd_engine.client.speculation import Speculation, speculation_counters
from tests.client.fake_server import FakeServer

SLOP = 0.3  # seconds by which a busy machine may be late; it is never early
EARLY = 0.002  # a sleep may end this much before its time


def prompt(**how: Any) -> str:
    return json.dumps({"first": 0.0, "gap": 0.0, "chunks": 2, "tokens": 4, **how})


def ask_all(
    fake: FakeServer, prompts: list[str], load: Load, endpoint: Endpoint = "chat", **fields: Any
) -> tuple[list[Answer], float]:
    async def run() -> tuple[list[Answer], float]:
        async with open_client(fake.url, timeout=5.0, max_retries=0) as client:
            target = Target(client, "fake", endpoint, 32, fields)
            return await run_load(target, prompts, load, lambda answer: None)

    return asyncio.run(run())


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_times_are_those_of_the_server(fake: FakeServer, endpoint: Endpoint) -> None:
    how = prompt(first=0.15, gap=0.05, chunks=4, tokens=11)
    [answer], duration = ask_all(fake, [how], Load(math.inf, None), endpoint, top_k=3)
    assert answer.error is None
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 11)
    assert len(answer.texts) == 4
    for index, came in enumerate(answer.texts):
        expected = 0.15 + 0.05 * index
        assert expected - EARLY <= came - answer.sent <= expected + SLOP
    assert 0.3 - EARLY <= answer.ended - answer.sent <= duration <= 0.3 + SLOP
    body = fake.bodies[0]
    assert body["top_k"] == 3 and body["stream_options"] == {"include_usage": True}
    assert body["max_tokens" if endpoint == "completions" else "max_completion_tokens"] == 32


def test_what_fails_is_told_and_not_tried_again(fake: FakeServer) -> None:
    prompts = [prompt(status=503), prompt(ends="cut"), prompt(ends="error"), prompt()]
    answers, _ = ask_all(fake, prompts, Load(math.inf, None))
    assert [answer.error for answer in answers] == [
        "the server answered 503: no room here",
        "the stream ended without a finish_reason",
        "the server failed: broke down",
        None,
    ]
    assert len(fake.bodies) == 4


def test_what_is_no_answer_fails_its_own_request(fake: FakeServer) -> None:
    answers, _ = ask_all(fake, [prompt(ends="garbage"), prompt()], Load(math.inf, None))
    assert answers[0].error is not None and "JSONDecodeError" in answers[0].error
    assert answers[1].error is None


def test_silence_fails_a_request(fake: FakeServer) -> None:
    async def run() -> list[Answer]:
        async with open_client(fake.url, timeout=0.1, max_retries=0) as client:
            target = Target(client, "fake", "chat", 32, {})
            load = Load(math.inf, None)
            return (await run_load(target, [prompt(first=3.0)], load, lambda answer: None))[0]

    [answer] = asyncio.run(run())
    assert answer.error is not None and "time" in answer.error


@pytest.mark.parametrize("most", [1, 3, None])
def test_no_more_run_at_once_than_may(fake: FakeServer, most: int | None) -> None:
    ask_all(fake, [prompt(first=0.1)] * 8, Load(math.inf, most))
    assert fake.most == (8 if most is None else most)


def test_requests_are_sent_on_schedule(fake: FakeServer) -> None:
    load = Load(40.0, None, seed=3)
    answers, duration = ask_all(fake, [prompt()] * 12, load)
    times = arrivals(12, 40.0, 3)
    late = [a.sent - answers[0].sent - due for a, due in zip(answers, times, strict=True)]
    assert min(late) > -SLOP and max(late) < SLOP
    assert duration >= times[-1]


def test_a_failed_warm_up_is_an_error(fake: FakeServer) -> None:
    async def run(how: str) -> None:
        async with open_client(fake.url, max_retries=0) as client:
            target = Target(client, "fake", "chat", 32, {})
            await warm_up(target, [how], 2, Load(math.inf, 1))

    asyncio.run(run(prompt()))
    assert len(fake.bodies) == 2 and fake.most == 1
    with pytest.raises(ConnectionError, match="a warm-up failed: the server answered 503"):
        asyncio.run(run(prompt(status=503)))


def test_speculation_of_answers_and_of_counters(fake: FakeServer) -> None:
    fake.metrics = {
        "speculative_decoding": {
            "num_draft_tokens": 8, "num_accepted_draft_tokens": 5, "num_spec_steps": 2,
        }
    }  # fmt: skip
    [answer], _ = ask_all(fake, [prompt()], Load(math.inf, None))
    assert answer.speculation == Speculation(drafted=8, accepted=5, rounds=2)

    async def counters() -> Speculation | None:
        async with open_client(fake.url) as client:
            return await speculation_counters(client)

    assert asyncio.run(counters()) is None
    fake.counts = True
    assert asyncio.run(counters()) == Speculation(drafted=12, accepted=9, rounds=4)


def test_models(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(url: str, wanted: str | None) -> str:
        async with open_client(url, max_retries=0) as client:
            return (await find_model(client, wanted)).id

    assert asyncio.run(find(fake.url, None)) == "fake"
    with pytest.raises(ValueError, match=r"has \['fake'\], no model 'other'"):
        asyncio.run(find(fake.url, "other"))
    wrong = fake.url.removesuffix("/v1")
    with pytest.raises(ConnectionError, match=f"404 at {wrong}/models"):
        asyncio.run(find(wrong, None))
    assert asyncio.run(find(wrong, "any")) == "any"
    with pytest.raises(ConnectionError, match="cannot reach"):
        asyncio.run(find("http://127.0.0.1:1/v1", None))


def test_the_key_is_that_of_the_environment(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    ask_all(fake, [prompt()], Load(math.inf, None))
    assert fake.keys == ["Bearer secret"]
