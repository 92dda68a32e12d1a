"""Rows of a dataset: what they ask, and the columns that answers add."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from rsd_engine import (
    Candidate,
    Metrics,
    RejectedStep,
    RequestOutput,
    SamplingParams,
    Softmax,
    Step,
    Threshold,
)
from rsd_engine.engine.chat.questions import question_seed
from rsd_engine.integrations.ray.rows import ANSWER, add_answers, read_row
from rsd_engine.outputs import CandidateCounts, CompletionOutput, RoleMetrics
from tests.integrations.ray.conftest import table

PARAMS = SamplingParams(temperature=0.5, max_tokens=9, seed=7)


def through_arrow(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows as an actor sees them: every struct of a column has the fields of all."""
    found: list[dict[str, Any]] = table(rows).to_pylist()
    return found


def test_a_row_brings_its_own_parameters() -> None:
    rows = through_arrow(
        {"id": 1, "question": "a", "params": {"temperature": 0.0, "policy": "threshold:0.9"}},
        {"id": 4, "question": "d", "params": {"step_candidates": 4, "select": "softmax:20"}},
        {"id": 2, "question": "b", "params": {"max_tokens": 3, "seed": 5}},
        {"id": 3, "question": "c", "params": None},
    )
    params = [read_row(row, PARAMS, "id")[1] for row in rows]
    one, candidates, two, three = params
    assert (candidates.step_candidates, candidates.select) == (4, Softmax(20.0))
    params = [one, two, three]
    assert [p.temperature for p in params] == [0.0, 0.5, 0.5]
    assert [p.max_tokens for p in params] == [9, 3, 9]
    assert [p.policy for p in params] == [Threshold(0.9), None, None]
    assert [p.seed for p in params] == [question_seed(7, 1), 5, question_seed(7, 3)]


def test_nested_columns_may_be_json() -> None:
    messages = [{"role": "user", "content": "hi"}]
    row = {"id": "x", "messages": json.dumps(messages), "params": '{"stop": ["a", "b"]}'}
    given, params = read_row(row, PARAMS, "id")
    assert given == {"messages": messages}
    assert params.stop == ["a", "b"]


def test_what_arrow_fills_in_is_taken_out() -> None:
    """Without it, a template would see tool calls, and a tool the arguments of another one."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    user = {"role": "user", "content": "hi"}
    tools = [
        {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}},
        {"name": "g", "parameters": {"properties": {"b": {"type": "string"}}}},
    ]
    [row] = through_arrow({"messages": [user, call, user], "tools": tools})
    assert row["messages"][0]["tool_calls"] is None  # what Arrow makes of it
    given, _ = read_row(row, PARAMS, "id")
    assert given == {"messages": [user, call, user], "tools": tools}


def test_the_seed_comes_from_the_id_or_else_from_the_question() -> None:
    def seed(row: dict[str, Any], column: str = "id") -> int | None:
        return read_row(row, PARAMS, column)[1].seed

    assert seed({"id": "p1", "question": "a"}) == seed({"id": "p1", "question": "b"})
    assert seed({"id": "p1", "question": "a"}) != seed({"id": "p2", "question": "a"})
    assert seed({"question": "a"}) == seed({"question": "a", "other": 1})
    assert seed({"question": "a"}) != seed({"question": "b"})
    assert seed({"id": 1, "key": 2, "question": "a"}, "key") == question_seed(7, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "needs one of"),
        ({"id": 1, "question": None}, "needs one of"),
        ({"id": 1, "question": 5}, "question must be text, got 5"),
        ({"id": 1, "question": "a", "params": "{"}, "params is not JSON"),
        ({"id": 1, "question": "a", "params": "[1]"}, r"params must be an object, got \[1\]"),
        ({"id": 1, "question": "a", "params": {"temprature": 1}}, "unknown sampling parameters"),
        ({"id": 1, "question": "a", "params": {"policy": "x"}}, "policy"),
        ({"id": 1, "messages": "[1]"}, "messages must be a list of objects"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_row(row, PARAMS, "id")


def result(*outputs: CompletionOutput) -> RequestOutput:
    metrics = Metrics(
        draft=RoleMetrics(tokens_generated=5),
        steps_accepted=2,
        candidates=CandidateCounts(made=3, taken=1, tokens_discarded=3),
    )
    return RequestOutput("r", "p", (1,), outputs, metrics, seed=2**62)


def test_answers_become_columns() -> None:
    rejected = RejectedStep("no", (1,), float("nan"))
    lost = (
        Candidate("eins", (3,), "draft", float("nan")),
        Candidate("uno", (4, 5), "draft", 0.5, score=9.5),
    )
    first_step = Step("one", (1,), "draft", 0.75, None, candidates=lost)
    steps = (first_step, Step("two", (2,), "target", None, rejected))
    one = CompletionOutput(0, "onetwo", (1, 2), "stop", 17, steps)
    two = CompletionOutput(1, "", (), "error", None, (), error="broke")
    rows = pa.table({"id": ["a", "b"]})
    answered = add_answers(rows, [result(one, two), "bad \ud800 row"])
    assert answered.column_names == ["id", *ANSWER.names]
    assert [answered.schema.field(name) for name in ANSWER.names] == list(ANSWER)
    first, second, third = answered.to_pylist()
    assert first == {
        "id": "a",
        "sample": 0,
        "seed": 2**62,
        "text": "onetwo",
        "finish_reason": "stop",
        "stop_reason": "17",
        "steps": [
            {
                "text": "one",
                "source": "draft",
                "reward": 0.75,
                "rejected": None,
                "candidates": [
                    {"text": "eins", "source": "draft", "reward": None, "score": None},
                    {"text": "uno", "source": "draft", "reward": 0.5, "score": 9.5},
                ],
            },
            {
                "text": "two",
                "source": "target",
                "reward": None,
                "rejected": {"text": "no", "reward": None},
                "candidates": [],
            },
        ],
        "rewards": [0.75, None],
        "metrics": {
            "draft_tokens": 5,
            "discarded_tokens": 0,
            "target_tokens": 0,
            "steps_accepted": 2,
            "steps_rejected": 0,
            "candidates": 3,
            "flops": 0,
        },
        "error": None,
    }
    assert (second["id"], second["sample"], second["error"]) == ("a", 1, "broke")
    assert second["metrics"] is None
    assert third == {"id": "b", **dict.fromkeys(ANSWER.names), "error": "bad \\ud800 row"}


def test_columns_of_answers_must_be_free() -> None:
    with pytest.raises(ValueError, match=r"columns \['error', 'text'\], which answers bring"):
        add_answers(pa.table({"text": ["a"], "error": ["b"], "id": [1]}), ["x"])
