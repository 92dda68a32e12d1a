"""Process rewards by way of the server are those of `Engine.score`."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine import Engine
from tests.server.conftest import Client

STEPS = ["Tom has 3 + 4 = 7 apples.", "The answer is \\boxed{7}."]
WRONG = ["Tom has 3 * 4 = 12 apples.", "The answer is \\boxed{12}."]
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"


def test_rewards_are_the_engine_s(client: Client, engine: Engine) -> None:
    given = [{"question": QUESTION, "steps": steps} for steps in (STEPS, WRONG)]
    answer = client.post("/v1/score", {"input": given}).json()
    results = engine.score([QUESTION, QUESTION], [STEPS, WRONG])
    assert [entry["steps"] for entry in answer["data"]] == [STEPS, WRONG]
    for entry, result in zip(answer["data"], results, strict=True):
        assert entry["rewards"] == pytest.approx(list(result.rewards), abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == sum(result.tokens_read for result in results)
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "\n\n".join(STEPS)},
    ]
    one = client.post("/v1/score", {"input": {"messages": messages}}).json()
    assert one["data"][0]["rewards"] == pytest.approx(list(results[0].rewards), abs=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{}]}, "question"),
        ({"input": {"question": QUESTION}}, "steps"),
        ({"input": {"question": QUESTION, "steps": []}}, "step"),
        ({"input": {"question": QUESTION, "steps": [3]}}, "steps"),
        ({"input": {"question": "a", "steps": ["b" * 20_000]}}, "PRM"),
        ({"input": {"question": "a", "stepz": ["b"]}}, "stepz"),
    ],
)
def test_bad_input(client: Client, given: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/score", given)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
