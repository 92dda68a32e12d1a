"""Candidates for a step: asked for in a request, told of in answers and metrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rsd_engine import (
    GSI,
    Beam,
    Candidate,
    Engine,
    Metrics,
    RejectedStep,
    RequestOutput,
    SamplingParams,
    Selection,
    Softmax,
    Step,
    StepEvent,
)
from rsd_engine.outputs import CandidateCounts, CompletionOutput, RoleMetrics
from rsd_engine.server import replies
from rsd_engine.server.metrics import ServerMetrics
from rsd_engine.server.protocol.answers import DecidedStep, RsdAnswer
from tests.server.conftest import Client
from tests.server.test_chat import PATH, QUESTIONS, conversation, events_of

LOST = (
    Candidate("b", (2, 3), "draft", math.nan, score=9.5),
    Candidate("c", (3,), "target", 0.25),
)
TOLD = [
    {"text": "b", "source": "draft", "reward": None, "score": 9.5, "num_tokens": 2},
    {"text": "c", "source": "target", "reward": 0.25, "score": None, "num_tokens": 1},
]


def result() -> RequestOutput:
    rejected = RejectedStep("d", (4,), 0.5)
    step = Step("a", (1,), "target", 0.75, rejected, candidates=LOST)
    output = CompletionOutput(0, "a", (1,), "stop", None, (step,))
    metrics = Metrics(
        target=RoleMetrics(tokens_generated=1, tokens_discarded=1),
        candidates=CandidateCounts(made=4, taken=2, tokens_discarded=3),
    )
    return RequestOutput("r", "x", (0,), (output,), metrics, seed=1)


def test_an_answer_has_the_candidates_that_lost() -> None:
    answer = RsdAnswer.model_validate(replies.rsd_object(result()), strict=True)
    [choice] = answer.model_dump()["choices"]
    [step] = choice["steps"]
    assert step["candidates"] == TOLD
    assert answer.metrics["candidates"] == {"made": 4, "taken": 2, "tokens_discarded": 3}


def test_a_stream_has_them_too() -> None:
    event = StepEvent("r", 0, "kept", "a", (1,), "target", 0.75, candidates=LOST)
    told = DecidedStep.model_validate(replies.step_event(event), strict=True)
    assert told.model_dump()["candidates"] == TOLD


def test_prometheus_counts_them() -> None:
    metrics = ServerMetrics("m", vllm_names=False)
    metrics.count_result(result(), 1.0)
    found = {
        (sample.name, sample.labels.get("fate")): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert found["rsd:candidates_total", "taken"] == found["rsd:candidates_total", "lost"] == 2
    assert found["rsd:target_tokens_total", None] == 2
    # Of the step, the one that it replaced, and the candidate that has one.
    assert found["rsd:reward_sum", None] == 0.75 + 0.5 + 0.25
    assert found["rsd:reward_count", None] == 3


@pytest.mark.parametrize(
    ("own", "count", "select"),
    [
        ({"step_candidates": 3, "select": "softmax:5"}, 3, Softmax(5.0)),
        ({"step_candidates": 4, "select": "gsi"}, 4, GSI()),
        ({"step_candidates": 2, "select": "beam:2"}, 2, Beam(2)),
    ],
)
def test_a_server_writes_what_the_engine_writes(
    client: Client, engine: Engine, own: dict[str, Any], count: int, select: Selection
) -> None:
    params = SamplingParams(
        temperature=0.9, seed=5, max_tokens=120, step_candidates=count, select=select
    )
    [result] = engine.chat(conversation(QUESTIONS[0]), params, use_tqdm=False)
    [output] = result.outputs
    body = {
        "messages": conversation(QUESTIONS[0]),
        "temperature": 0.9,
        "seed": 5,
        "max_tokens": 120,
        "rsd": {**own, "steps": True},
    }
    answer = client.post(PATH, body).json()
    assert answer["choices"][0]["message"]["content"] == output.text
    [shown] = answer["rsd"]["choices"]
    lost = [[one.text for one in step.candidates] for step in output.steps]
    assert [[one["text"] for one in step["candidates"]] for step in shown["steps"]] == lost
    assert any(lost)
    counts = result.metrics.candidates
    assert answer["rsd"]["metrics"]["candidates"] == {
        "made": counts.made,
        "taken": counts.taken,
        "tokens_discarded": counts.tokens_discarded,
    }
    chunks = events_of(client.post(PATH, {**body, "stream": True}).text)
    told = [chunk["rsd"]["step"] for chunk in chunks if "rsd" in chunk]
    kept = [step for step in told if step["kind"] == "kept"]
    assert [[one["text"] for one in step["candidates"]] for step in kept] == lost


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"step_candidates": 5}, "that takes 5 slots at once, of max_num_seqs=4; lower them"),
        ({"step_candidates": 0}, "step_candidates must be in [1, 64], got 0"),
        ({"select": "best"}, "step_candidates is 1, so there is nothing to select"),
        ({"select": "top:2", "step_candidates": 2}, "select = 'top:2': unknown; write one of best"),
        ({"select": {"kind": "gsi"}}, "rsd.select: input should be a valid string"),
        ({"step_candidates": 2, "mode": "draft"}, "nothing scores steps in mode 'draft'"),
        ({"step_candidates": 2, "select": "gsi", "threshold": 0.5}, "leave policy out"),
    ],
)
def test_what_is_not_allowed_is_said(client: Client, own: dict[str, Any], message: str) -> None:
    answer = client.post(PATH, {"messages": conversation("2 + 2?"), "rsd": own})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
