"""`rsd tune`: a run with held-out questions, from records, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsd_engine.evaluate.record import Counts, Question, Record, ScoredText, StepRecord
from tests.cli.conftest import Rsd, write_jsonl

ROWS = [
    {"question": f"Which? Number {i}", "choices": ["a", "b", "c", "d"], "answer": i % 4}
    for i in range(9)
]
SHORT = ["--max-tokens=40", "--max-step-tokens=8", "--temperature=0.8", "--seed=3"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", ROWS)


def record(number: int, **changes: object) -> dict[str, object]:
    """A step of a reward that grows with the number, and as long a rewrite of a bad one."""
    steps = (
        StepRecord("four", "draft", 0.6 + number / 100),
        StepRecord("five", "target", None, ScoredText("six", 0.1)),
    )
    found = Record(
        question=Question(f"q-{number}", f"Number {number}", "7", "file"),
        method="rsd",
        settings={"threshold": 0.5},
        seed=0,
        text="fourfive",
        found=None,
        correct=False,
        finish_reason="stop",
        counts=Counts(draft_tokens=2, target_tokens=2),
        seconds=0.0,
        steps=steps,
    )
    return found.to_json() | changes


def test_a_threshold_is_found_and_tried(rsd: Rsd, model_args: list[str], questions: Path) -> None:
    args = ["tune", *model_args, f"--questions={questions}:6", f"--held-out={questions}:7-9"]
    result = rsd(*args, *SHORT, "--budget=0.5", "--start=0.5", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    expected, came = found["expected"], found["held_out"]
    assert found["threshold"] == expected["threshold"] == came["threshold"]
    assert expected["known"] == came["known"] == 1
    assert 0 <= expected["low"] <= expected["share"] <= 0.5
    assert expected["threshold"] in [one["threshold"] for one in found["sweep"]]
    shares = [one["share"] for one in found["sweep"]]
    assert shares == sorted(shares)
    # The same questions at the threshold that was found give what was expected of them.
    again = rsd(
        "tune", *model_args, f"--questions={questions}:6", *SHORT, "--passes=1", "--json",
        f"--start={found['threshold']!r}", "--budget=0.5",
    )  # fmt: skip
    assert again.exit_code == 0, again.stderr
    assert expected["share"] in [one["share"] for one in json.loads(again.stdout)["sweep"]]


def test_records_need_no_models(rsd: Rsd, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "results.jsonl", [record(number) for number in range(10)])
    result = rsd("tune", f"--records={path}", "--budget=0.72")
    assert result.exit_code == 0, result.stderr
    # Half of the tokens anyway, and 5 % for each of the ten good steps that is rejected: four.
    assert "--policy threshold:0.635," in result.stdout
    assert "expected: 70.0% of the tokens from the target" in result.stdout
    assert "of 40% of the answers it is assumed" in result.stdout
    assert "held out" not in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget=1.5"], "--budget must be a share between 0 and 1, such as 0.3, got 1.5"),
        (["--start=7"], "--start must be in [0, 1], as rewards are, got 7"),
        (["--policy=clip"], "policy is given; here it is a threshold"),
        (["--seed=99999999999999999999"], "--seed must be in"),
        (["--questions=demo:9-2"], "questions 'demo:9-2' end with '9-2'"),
        (["--questions=demo:9", "--held-out=demo:9-12"], "--held-out has 1 of the questions"),
        (["--records=nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["--records={best}"], "has no answers of rsd at a threshold; evaluate with"),
        (["--records={failed}"], "no question has an answer"),
    ],
)
def test_what_is_refused(rsd: Rsd, tmp_path: Path, args: list[str], message: str) -> None:
    best = write_jsonl(tmp_path / "a.jsonl", [record(0, method="best@2", settings={"n": 2})])
    failed = write_jsonl(tmp_path / "b.jsonl", [record(0, error="no pages")])
    result = rsd("tune", *(arg.format(best=best, failed=failed) for arg in args))
    assert result.exit_code == 2
    assert message in result.stderr
