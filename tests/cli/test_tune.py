"""`rsd tune`: a run with held-out questions, stopped and resumed, from records, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.evaluate import run as evaluate_run
from rsd_engine.evaluate.record import TIMES, Counts, Question, Record, ScoredText, StepRecord
from tests.cli.conftest import Rsd, read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[2]

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


@pytest.fixture
def tune_args(model_args: list[str], questions: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run in batches of 2."""
    monkeypatch.setattr(evaluate_run, "BATCH", 2)
    args = ["tune", *model_args, f"--questions={questions}:6", f"--held-out={questions}:7-9"]
    return [*args, *SHORT, "--start=0.5", "--json"]


def answers(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All lines of each file, but for their times."""
    return {
        path.name: [{k: v for k, v in line.items() if k not in TIMES} for line in read_jsonl(path)]
        for path in folder.glob("*.jsonl")
    }


def test_a_threshold_is_found_and_tried(
    rsd: Rsd, model_args: list[str], tune_args: list[str], questions: Path, tmp_path: Path
) -> None:
    result = rsd(*tune_args, "--budget=0.5", "-o", tmp_path / "run")
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
        f"--start={found['threshold']!r}", "--budget=0.5", "-o", tmp_path / "again",
    )  # fmt: skip
    assert again.exit_code == 0, again.stderr
    assert expected["share"] in [one["share"] for one in json.loads(again.stdout)["sweep"]]


def test_a_run_and_its_resumption(
    rsd: Rsd, tune_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [*tune_args, "--budget=0.5"]
    result = rsd(*wanted, "-o", tmp_path / "whole")
    assert result.exit_code == 0, result.stderr
    whole = answers(tmp_path / "whole")
    found = json.loads(result.stdout)["threshold"]
    assert {"threshold-0.5.jsonl", f"threshold-{found!r}.jsonl"} < set(whole)
    assert [name for name in whole if "held" in name] == [f"held_out-{found!r}.jsonl"]
    assert [line["question"]["id"] for line in whole["threshold-0.5.jsonl"]] == [
        f"q-{number}" for number in range(6)
    ]
    passes = sorted((tmp_path / "whole").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for count in range(len(passes)):  # what a kill in each of the files leaves, a line torn
        part = tmp_path / f"part-{count}"
        part.mkdir()
        for path in passes[: count + 1]:
            shutil.copy(path, part)
        data = passes[count].read_bytes()
        (part / passes[count].name).write_bytes(data[: int(0.6 * len(data))])
        again = rsd(*wanted, "-o", part)
        assert again.exit_code == 0, again.stderr
        assert "the last line was cut off" in again.stderr
        assert again.stdout == result.stdout and answers(part) == whole
    # Nothing to do: no engine is made, and the threshold is printed again.
    monkeypatch.setattr("rsd_engine.cli.eval.asking.make_engine", None)
    assert rsd(*wanted, "-o", tmp_path / "whole").stdout == result.stdout


def test_another_budget_asks_only_what_is_new(
    rsd: Rsd, tune_args: list[str], tmp_path: Path
) -> None:
    assert rsd(*tune_args, "--budget=0.5", "-o", tmp_path / "run").exit_code == 0
    again = rsd(*tune_args, "--budget=0.2", "-o", tmp_path / "run")
    assert again.exit_code == 0, again.stderr
    assert "threshold-0.5.jsonl: 6 of 6 answers are there, nothing to do" in again.stderr
    fresh = rsd(*tune_args, "--budget=0.2", "-o", tmp_path / "fresh")
    assert again.stdout == fresh.stdout
    for args, message in (
        (["--temperature=0.7"], "with other models or settings"),
        (["--seed=4"], "the list of questions, at number 1, has changed since"),
    ):
        result = rsd(*tune_args, "--budget=0.2", *args, "-o", tmp_path / "run")
        assert result.exit_code == 2
        assert message in result.stderr
    result = rsd(*tune_args, "--budget=0.2", "--seed=4", "--overwrite", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.stderr


@pytest.mark.timeout(1800)  # takes about a minute
@pytest.mark.slow  # `test_a_run_and_its_resumption` cuts the files as a kill does
def test_killed_at_random_and_resumed_gives_what_one_run_gives(tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "rsd_engine.cli", "tune", "--questions=demo:70", "--json",
            "--held-out=demo:71-140", "--max-tokens=60", "-o", str(tmp_path / name),
        ]  # fmt: skip

    def finished(name: str) -> bytes:
        return subprocess.run(
            command(name), env=env, check=True, capture_output=True, timeout=900
        ).stdout

    def written() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "part").glob("*.jsonl"))

    whole = finished("whole")
    for count in range(10):
        before = written()
        process = subprocess.Popen(command("part"), env=env, stderr=subprocess.DEVNULL)
        while process.poll() is None and written() <= before:
            time.sleep(0.01)
        time.sleep(0.02 * count)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert finished("part") == whole
    assert answers(tmp_path / "part") == answers(tmp_path / "whole")


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
        (["--start=7"], "--start must be in [-1, 1], as rewards are, got 7"),
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
    given = [arg.format(best=best, failed=failed) for arg in args]
    result = rsd("tune", *given, f"--output={tmp_path / 'out'}")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_is_needed_and_must_be_a_folder(rsd: Rsd, tmp_path: Path) -> None:
    assert "--output is missing; give a folder" in rsd("tune").stderr
    (tmp_path / "file").write_text("mine")
    result = rsd("tune", "-o", tmp_path / "file")
    assert result.exit_code == 2 and "--output must be a folder" in result.stderr
