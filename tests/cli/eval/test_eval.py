"""`rsd eval`: a run, stopped and resumed, and everything that is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.evaluate import run as evaluate_run
from rsd_engine.evaluate.methods import METHODS
from rsd_engine.evaluate.record import TIMES, read_records
from tests.cli.conftest import Rsd, read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
METHODS_TRIED = "target,rsd,best@2"
OPTIONS = ["--max-tokens=40", "--max-step-tokens=8", "--several-temperature=1"]
ROWS = [
    {"question": f"Which? Number {i}", "choices": ["a", "b", "c", "d"], "answer": i % 4}
    for i in range(3)
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", ROWS)


@pytest.fixture
def eval_args(model_args: list[str], questions: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run in batches of 2."""
    monkeypatch.setattr(evaluate_run, "BATCH", 2)
    return ["eval", *model_args, f"--questions={questions}", *OPTIONS]


def lasting(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_jsonl(path)]


def test_a_run_and_its_resumption(rsd: Rsd, eval_args: list[str], tmp_path: Path) -> None:
    wanted = [*eval_args, f"--methods={METHODS_TRIED}", "--threshold=0.4,0.6", "--seeds=1,2"]
    folder = tmp_path / "whole"
    result = rsd(*wanted, "-o", folder)
    assert result.exit_code == 0, result.stderr
    assert "best@2, seed 2: " in result.stderr
    results = folder / "results.jsonl"
    records = read_records(results.read_text())
    tried = ("target", "rsd 0.4", "rsd 0.6", "best@2")
    assert [(r.label, r.seed, r.question.id) for r in records] == [
        (label, seed, f"q-{i}") for label in tried for seed in (1, 2) for i in range(len(ROWS))
    ]
    assert [line.split("|")[1].strip() for line in result.stdout.splitlines()[3:7]] == list(tried)
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["method"] for row in summary] == ["target", "rsd", "rsd", "best@2"]
    times = [[row["role_seconds"][role] for role in ("draft", "target", "prm")] for row in summary]
    for line, seconds in zip(result.stdout.splitlines()[3:7], times, strict=True):
        assert line.split("|")[12].strip() == "/".join(f"{one:.1f}" for one in seconds)
    assert [[one > 0 for one in seconds] for seconds in times[:2]] == [
        [False, True, False],
        [True] * 3,
    ]
    whole, data = lasting(results), results.read_bytes()
    part = tmp_path / "part" / "results.jsonl"
    part.parent.mkdir()
    for share in (0.3, 0.9):  # what a kill leaves, the last line torn
        part.write_bytes(data[: int(share * len(data))])
        again = rsd(*wanted, "-o", part.parent)
        assert again.exit_code == 0, again.stderr
        assert "answers are there, going on" in again.stderr
        assert lasting(part) == whole
    # Nothing to do: no engine is made, and the table is printed again.
    assert "nothing to do" in rsd(*wanted, "-o", part.parent).stderr


def test_methods_may_be_added_at_the_end_and_nothing_else_may_change(
    rsd: Rsd, eval_args: list[str], tmp_path: Path
) -> None:
    assert rsd(*eval_args, "--methods=draft", "-o", tmp_path).exit_code == 0
    before = (tmp_path / "results.jsonl").read_text()
    assert rsd(*eval_args, "--methods=draft,target", "-o", tmp_path).exit_code == 0
    more = (tmp_path / "results.jsonl").read_text()
    assert more.startswith(before) and len(more.splitlines()) == 2 * len(ROWS)
    for args, message in (
        (["--methods=target,draft"], "the list of methods, thresholds, seeds and questions, at"),
        (["--methods=draft"], "has changed since"),
        (["--methods=draft,target", "--temperature=0.5"], "with other models or settings"),
    ):
        result = rsd(*eval_args, *args, "-o", tmp_path)
        assert result.exit_code == 2
        assert message in result.stderr
    assert (tmp_path / "results.jsonl").read_text() == more
    assert rsd(*eval_args, "--methods=draft", "-o", tmp_path, "--overwrite").exit_code == 0
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(ROWS)


def test_an_answer_that_failed_is_told_and_tried_again(
    rsd: Rsd, eval_args: list[str], tmp_path: Path
) -> None:
    path = write_jsonl(
        tmp_path / "long.jsonl", [ROWS[0], {"question": "a" * 3000, "answer": "1"}, ROWS[2]]
    )
    args = [*eval_args, f"--questions={path}", "--methods=target", "-o", tmp_path]
    for _ in range(2):
        result = rsd(*args)
        assert result.exit_code == 1
        assert "target, long-1: " in result.stderr
        assert "1 of 3 answers failed" in result.stderr
        records = read_records((tmp_path / "results.jsonl").read_text())
        assert [record.error is None for record in records] == [True, False, True]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods=oracle"], "method 'oracle' is unknown; allowed: target, draft"),
        (["--methods=rsd,,draft"], "--methods 'rsd,,draft' has an empty item"),
        (["--methods=rsd,rsd"], "--methods has 'rsd' twice"),
        (["--methods=judge"], "'judge' needs an engine whose scorer is target as judge"),
        (["--threshold=0.5,high"], "--threshold must be numbers such as 0.5,0.7, got 'high'"),
        (["--threshold=nan"], "threshold"),
        (["--threshold=0.5,0.50"], "--threshold has '0.50' twice"),
        (["--seeds=0,-1"], "--seeds must be integers in [0, "),
        (["--seeds=1.5"], "got '1.5'"),
        (["--questions=nosuch"], "questions 'nosuch' are no file and no data set"),
        (["--questions=demo:0"], "how many to take, at least 1"),
        (["--policy=clip"], "policy is given; here a policy is part of a method, such as rsd:clip"),
        (["--temperature=-1"], "temperature must be 0 or in"),
        (["--several-top-p=0"], "top_p must be in (0, 1]"),
        (["--max-tokens=0"], "max_tokens must be in [1, "),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    rsd: Rsd, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rsd_engine.cli.eval.asking.make_engine", None)
    result = rsd("eval", *args, f"--output={tmp_path / 'out'}")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "name", "questions"),
    [("scipy", "scipy.stats", "demo:1"), ("math-verify", "math_verify", "{}")],
)
def test_a_missing_package_is_told_before_any_work(
    package: str, name: str, questions: str, rsd: Rsd, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, name, None)
    path = write_jsonl(tmp_path / "math.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    result = rsd("eval", f"--questions={questions.format(path)}", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"this needs {package}, which is not installed" in result.stderr
    assert 'pip install "rsd-engine[eval]"' in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_is_needed_and_must_be_a_folder(rsd: Rsd, tmp_path: Path) -> None:
    assert "--output is missing; give a folder" in rsd("eval").stderr
    (tmp_path / "file").write_text("mine")
    result = rsd("eval", "-o", tmp_path / "file")
    assert result.exit_code == 2 and "--output must be a folder" in result.stderr
    (tmp_path / "results.jsonl").write_text('{"my": "data"}\n')
    result = rsd("eval", "-o", tmp_path)
    assert result.exit_code == 2
    assert "is not a result of `rsd eval`; nothing was changed" in result.stderr


def test_a_method_that_the_models_cannot_do_is_refused(
    rsd: Rsd, eval_args: list[str], tmp_path: Path
) -> None:
    result = rsd(*eval_args, "--methods=target,beam@8:8", "-o", tmp_path)
    assert result.exit_code == 1
    assert "method 'beam@8:8': step_candidates is 8" in result.stderr
    assert (tmp_path / "results.jsonl").read_text() == ""


def test_the_list_names_everything(rsd: Rsd) -> None:
    result = rsd("eval", "--list")
    assert result.exit_code == 0
    for method in METHODS.values():
        assert f"| {method.form} " in result.stdout and method.does in result.stdout
    assert "openai/gsm8k" in result.stdout


def test_a_judge_may_score(rsd: Rsd, eval_args: list[str], tmp_path: Path) -> None:
    args = [arg for arg in eval_args if not arg.startswith("--prm")]
    result = rsd(*args, "--scorer=judge", "--methods=judge", "-o", tmp_path)
    assert result.exit_code == 0, result.stderr
    records = read_records((tmp_path / "results.jsonl").read_text())
    assert {record.label for record in records} == {"judge 0.777778"}


@pytest.mark.timeout(900)  # takes about a minute
@pytest.mark.slow  # `test_a_run_and_its_resumption` cuts the file as a kill does
def test_killed_at_random_and_resumed_gives_what_one_run_gives(tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "rsd_engine.cli", "eval", "--questions=demo:70",
            "--methods=target,speculative,rsd+guesses,best@2:min,gsi@2",
            "--max-tokens=60", f"--output={tmp_path / name}",
        ]  # fmt: skip

    def records(name: str) -> list[dict[str, Any]]:
        return lasting(tmp_path / name / "results.jsonl")

    subprocess.run(command("whole"), env=env, check=True, capture_output=True, timeout=300)
    part = tmp_path / "part" / "results.jsonl"
    for count in range(10):
        process = subprocess.Popen(command("part"), env=env, stderr=subprocess.DEVNULL)
        before = part.stat().st_size if part.exists() else 0
        while process.poll() is None and not (part.exists() and part.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(0.05 * count)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command("part"), env=env, check=True, capture_output=True, timeout=300)
    assert records("part") == records("whole")


def test_pictures_of_a_finished_run(
    rsd: Rsd, eval_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [*eval_args, "--methods=draft", "-o", str(tmp_path / "run")]
    assert rsd(*wanted).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        result = rsd(*wanted, "--pictures", "--overwrite")
        assert result.exit_code != 0
        assert 'pip install "rsd-engine[eval]"' in result.stderr
    result = rsd(*wanted, "--pictures")
    assert result.exit_code == 0, result.stderr
    assert "nothing to do" in result.stderr  # what is there was not overwritten
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {
        f"accuracy_{cost}.{kind}" for cost in ("flops", "seconds") for kind in ("png", "svg")
    }
