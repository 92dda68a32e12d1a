"""Models, health, metrics, tokens, ids and the log."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from rsd_engine import Engine
from tests.server.conftest import Client
from tests.server.test_chat import QUESTIONS, conversation


def test_models(client: Client, engine: Engine) -> None:
    found = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in found] == ["demo", "other-name"]
    assert client.get("/v1/models/other-name").json()["root"] == "demo"
    assert {model["max_model_len"] for model in found} == {engine.parts.rules.max_model_len}
    assert client.get("/v1/models/nobody").status_code == 404


def test_health(client: Client) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/ping").status_code == 200
    assert client.get("/ready").status_code == 200
    assert "version" in client.get("/version").json()


def test_tokens_there_and_back(client: Client, engine: Engine) -> None:
    tokenizer = engine.get_tokenizer()
    found = client.post("/tokenize", {"prompt": "The answer is 12."}).json()
    assert found["tokens"] == tokenizer.encode("The answer is 12.")
    assert found["count"] == len(found["tokens"])
    text = client.post("/detokenize", {"tokens": found["tokens"]}).json()["prompt"]
    assert text == "The answer is 12."


def test_metrics_add_up(client: Client) -> None:
    usage = []
    for question in QUESTIONS:
        body = {"messages": conversation(question), "temperature": 0}
        usage.append(client.post("/v1/chat/completions", body).json()["usage"])
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    def value(name: str, labels: str = "") -> float:
        return float(values[f'rsd:{name}{{{labels}model_name="demo"}}'])

    assert value("prompt_tokens_total") == sum(u["prompt_tokens"] for u in usage)
    assert value("generation_tokens_total") == sum(u["completion_tokens"] for u in usage)
    assert value("request_success_total", 'finished_reason="stop",') == len(QUESTIONS)
    assert value("time_to_first_token_seconds_count") == len(QUESTIONS)
    details = [u["completion_tokens_details"] for u in usage]
    kept = sum(d["accepted_prediction_tokens"] for d in details)
    discarded = sum(d["rejected_prediction_tokens"] for d in details)
    assert value("draft_tokens_total", 'fate="kept",') == kept
    assert value("draft_tokens_total", 'fate="discarded",') == discarded
    scored = value("spec_decode_num_drafts_total")
    assert scored == value("reward_count") > 0


@pytest.mark.parametrize("asked", [
    {"mode": "target", "speculate": "draft", "num_guesses": 3},
    {"threshold": 2, "speculate": "rejected+draft"},
])  # fmt: skip
def test_guesses_are_predictions(client: Client, asked: dict[str, Any]) -> None:
    """A proposed token is accepted if it is in the output; the target alone wrote the others."""
    body = {"messages": conversation(QUESTIONS[0]), "temperature": 0}
    plain = client.post("/v1/chat/completions", {**body, "rsd": {"mode": "target"}}).json()
    answer = client.post("/v1/chat/completions", {**body, "rsd": {**asked, "steps": True}}).json()
    metrics = answer["rsd"]["metrics"]
    guesses = metrics["guesses"].values()
    made, kept = (sum(source[name] for source in guesses) for name in ("made", "kept"))
    draft = 0 if asked.get("mode") else metrics["draft"]["tokens_discarded"]
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == kept > 0
    assert details["rejected_prediction_tokens"] == draft + made - kept
    [choice] = answer["rsd"]["choices"]
    assert sum(step["guessed"] for step in choice["steps"]) == kept
    found = answer["metrics"]["speculative_decoding"]
    rounds = metrics["steps_rejected"] + metrics["target"]["passes"]
    assert found["num_spec_steps"] == rounds
    assert found["num_accepted_draft_tokens"] == kept
    assert found["num_draft_tokens"] == draft + made
    if asked.get("mode"):
        assert answer["choices"] == plain["choices"] and plain["metrics"] is None
    text = client.get("/metrics").text
    for source, counts in metrics["guesses"].items():
        for fate in ("kept", "discarded"):
            count = counts["kept"] if fate == "kept" else counts["made"] - counts["kept"]
            line = f'rsd:guesses_total{{fate="{fate}",model_name="demo",source="{source}"}} '
            assert (f"{line}{float(count)}" in text) == (counts["made"] > 0)
    assert f'rsd:spec_decode_num_drafts_total{{model_name="demo"}} {float(rounds)}' in text


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("x" * 200, False), ("", False)])
def test_request_ids_and_one_line_a_request(
    client: Client, caplog: pytest.LogCaptureFixture, given: str, *, kept: bool
) -> None:
    body = {"messages": conversation("a secret question"), "max_tokens": 2}
    with caplog.at_level(logging.INFO, "rsd_engine.server.requests"):
        answer = client.post("/v1/chat/completions", body, headers={"X-Request-Id": given})
    found = answer.headers["X-Request-Id"]
    assert (found == given) == kept
    [line] = [json.loads(record.message) for record in caplog.records]
    assert line["request_id"] == found
    assert line["completion_tokens"] == 2
    assert line["finish_reasons"] == ["length"]
    assert "secret" not in caplog.text


def test_a_refused_request_is_logged_too(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsd_engine.server.requests"):
        client.post("/v1/chat/completions", {})
    [line] = [json.loads(record.message) for record in caplog.records]
    assert (line["status"], line["path"]) == (400, "/v1/chat/completions")
