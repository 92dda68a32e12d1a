"""Steps in answers, as `/openapi.json` has them."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from rsd_engine import Candidate, Metrics, RejectedStep, RequestOutput, Step, StepEvent
from rsd_engine.outputs import CandidateCounts, CompletionOutput, RoleMetrics
from rsd_engine.server import replies
from rsd_engine.server.metrics import ServerMetrics
from rsd_engine.server.protocol.answers import DecidedStep, RsdAnswer

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
