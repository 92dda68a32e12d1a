"""Results as JSON: what another run repeats, and nothing that is empty in most runs."""

from __future__ import annotations

import json
import math
from typing import Any

from rsd_engine import Candidate, Metrics, RequestOutput, Step
from rsd_engine.cli.generate.records import result_record
from rsd_engine.cli.results.result_line import to_json
from rsd_engine.outputs import CandidateCounts, CompletionOutput


def record(*steps: Step, candidates: CandidateCounts) -> dict[str, Any]:
    output = CompletionOutput(0, "a", (1,), "stop", None, steps)
    result = RequestOutput("r", "x", (0,), (output,), Metrics(candidates=candidates), seed=1)
    found: dict[str, Any] = json.loads(to_json(result_record(result)))
    return found


def test_candidates_are_told_where_there_are_some() -> None:
    lost = (
        Candidate("b", (2,), "draft", 0.123456),
        Candidate("c", (3,), "target", math.nan, score=9.87654),
    )
    chosen = Step("a", (1,), "draft", 0.98765432, None, candidates=lost)
    counts = CandidateCounts(made=3, taken=1, tokens_discarded=2)
    found = record(chosen, Step("a", (1,), "draft", 0.5, None), candidates=counts)
    [output] = found["outputs"]
    one, two = output["steps"]
    assert one["candidates"] == [
        {"text": "b", "token_ids": [2], "source": "draft", "reward": 0.1235},
        {"text": "c", "token_ids": [3], "source": "target", "reward": None, "score": 9.88},
    ]
    assert one["reward"] == 0.9877
    assert "candidates" not in two
    assert found["metrics"]["candidates"] == {"made": 3, "taken": 1, "tokens_discarded": 2}


def test_a_result_without_them_says_nothing_of_them() -> None:
    found = record(Step("a", (1,), "draft", 0.5, None), candidates=CandidateCounts())
    assert "candidates" not in json.dumps(found)
