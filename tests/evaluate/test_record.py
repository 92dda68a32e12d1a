"""Records: written, read back, and what is no record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import CompletionOutput, Metrics
from rsd_engine.evaluate.record import (
    CandidateText,
    Counts,
    Question,
    Record,
    RoleSeconds,
    Sample,
    ScoredText,
    StepRecord,
    read_records,
    step_records,
)
from rsd_engine.outputs import Candidate, Flops, RejectedStep, RoleMetrics, Step

RECORD = Record(
    question=Question("demo-1", "How many?", "7", "demo", "demo"),
    method="best@2:min",
    settings={"n": 2},
    seed=3,
    text="a\n\nThe answer is \\boxed{7}.",
    found="7",
    correct=True,
    finish_reason="stop",
    counts=Counts(1, 2, 3, 4, 5, 6, 7, 8),
    seconds=0.25,
    role_seconds=RoleSeconds(0.125, 0.0625, 0.03125),
    steps=(
        StepRecord("a\n\n", "draft", 0.9, None, (CandidateText("b\n\n", "draft", 0.1),)),
        StepRecord("The answer is \\boxed{7}.", "target", None, ScoredText("c", None)),
    ),
    samples=(Sample("x", None, False), Sample("y", "7", True, 0.5)),
)


def line(**changes: Any) -> str:
    return json.dumps(RECORD.to_json() | changes)


def test_a_record_is_read_back() -> None:
    written = json.loads(line())
    assert Record.from_json(written) == RECORD
    assert written["question"] == {
        "id": "demo-1", "text": "How many?", "answer": "7", "source": "demo", "kind": "demo",
    }  # fmt: skip
    assert written["steps"][1] == {
        "text": "The answer is \\boxed{7}.", "source": "target", "reward": None,
        "rejected": {"text": "c", "reward": None}, "candidates": [],
    }  # fmt: skip
    assert list(written) == [
        "question", "method", "settings", "seed", "text", "found", "correct", "finish_reason",
        "steps", "samples", "counts", "seconds", "role_seconds",
    ]  # fmt: skip


def test_errors_and_other_keys() -> None:
    found = Record.from_json(json.loads(line(error="no pages", line=4, run="abc")))
    assert found.error == "no pages"
    assert found.to_json()["error"] == "no pages"


def test_a_record_without_times_by_role() -> None:
    written = json.loads(line())
    del written["role_seconds"]
    old = Record.from_json(written)
    assert old == replace(RECORD, role_seconds=None)
    assert old.to_json() == written


def test_a_file_of_records_may_have_a_torn_last_line() -> None:
    assert read_records(f"{line()}\n\n{line()}\n" + line()[:50]) == [RECORD, RECORD]
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_records(line()[:50] + "\n" + line())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[1]", "line 1: must be a JSON object, got list"),
        ("{}", "line 1: question must be an object, got None"),
        (line(counts=3), "line 1: counts must be an object, got 3"),
        (line(question={"id": "1"}), "line 1: not a record of `rsd eval`: .*text"),
        (line(question={"kind": "poem"}), r"question.kind must be one of \['math', 'choice'"),
        (line(role_seconds=3), "line 1: not a record"),
        (line(steps=[3]), "line 1: not a record"),
        (line(samples=3), "line 1: not a record"),
    ],
)
def test_what_is_no_record_is_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_records(given)


def test_steps_and_counts_of_a_result() -> None:
    lost = Candidate("b", (4,), "draft", 0.123456)
    steps = (
        Step("a", (1,), "draft", 0.987654321, None, candidates=(lost,)),
        Step("c", (2,), "target", None, RejectedStep("d", (3,), math.nan)),
    )
    assert step_records(CompletionOutput(0, "ac", (1, 2), "stop", None, steps)) == (
        StepRecord("a", "draft", 0.9876543, None, (CandidateText("b", "draft", 0.123456),)),
        StepRecord("c", "target", None, ScoredText("d", None)),
    )
    metrics = Metrics(
        draft=RoleMetrics(tokens_generated=1, tokens_discarded=2, seconds=0.1234567),
        target=RoleMetrics(tokens_generated=3, tokens_discarded=4, seconds=0.25),
        prm=RoleMetrics(tokens_read=5, seconds=0.5),
        flops=Flops(6, 7), steps_accepted=8, steps_rejected=9,
    )  # fmt: skip
    found = Counts.of(metrics)
    assert found == Counts(1, 3, 6, 5, 8, 9, 6, 7)
    assert found + found == Counts(2, 6, 12, 10, 16, 18, 12, 14)
    times = RoleSeconds.of(metrics)
    assert times == RoleSeconds(draft=0.123457, target=0.25, prm=0.5)
    assert times + RoleSeconds(1, 2, 3) == RoleSeconds(1.123457, 2.25, 3.5)
