"""Ray Data on a cluster of this machine: actors and runs that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.json
import pyarrow.parquet
import pytest
import ray.data

from rsd_engine import Engine, SamplingParams
from rsd_engine.demo.problems import generate
from rsd_engine.integrations.ray.data import answer_files
from tests.integrations.ray.cluster import ACTOR, PYTHONPATH, kill_one, processes, ray_cluster
from tests.integrations.ray.conftest import ENGINE

PARAMS = SamplingParams(temperature=0.0, max_tokens=256)
ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ON_CPUS: dict[str, Any] = {"num_gpus": 0, "num_cpus": 1}


def write_questions(path: Path, count: int) -> dict[str, str]:
    """Problems with ids, one of them bad; the good questions by id."""
    questions = {
        f"p{i}": problem.question
        for i, problem in enumerate(generate(seed=3, split="test", num=count))
    }
    rows: list[dict[str, Any]] = [{"id": name, "question": q} for name, q in questions.items()]
    rows.insert(count // 2, {"id": "bad", "question": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions


def read_answers(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in folder.glob("*.json") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def kill_when(output: Path, files: int, killed: list[float]) -> threading.Thread:
    """Kills an actor once there are so many files of results, and notes when."""

    def watch() -> None:
        while len(list(output.glob("*.json"))) < files:
            time.sleep(0.02)
        kill_one(ACTOR)
        killed.append(time.monotonic())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def num_listed(output: Path) -> int:
    """Rows that are listed as written."""
    listed = ray.data.read_parquet(str(output) + ".checkpoint/rows")
    return int(listed.count())


def check_answers(folder: Path, questions: dict[str, str]) -> None:
    """Each row is there once, and its text is that of one engine."""
    answers = read_answers(folder)
    assert sorted(row["id"] for row in answers) == sorted([*questions, "bad"])
    by_id = {row["id"]: row for row in answers}
    assert "needs one of" in by_id.pop("bad")["error"]
    chats = [[{"role": "user", "content": question}] for question in questions.values()]
    with Engine(**ENGINE) as engine:
        results = engine.chat(chats, PARAMS, use_tqdm=False)
    expected = {name: r.outputs[0].text for name, r in zip(questions, results, strict=True)}
    assert {name: row["text"] for name, row in by_id.items()} == expected


def test_a_killed_actor_loses_no_row(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.jsonl", 20)
    killed: list[float] = []
    with ray_cluster(num_cpus=2):
        watcher = kill_when(tmp_path / "out", 1, killed)
        answer_files(
            str(tmp_path / "q.jsonl"), str(tmp_path / "out"), ENGINE, PARAMS,
            batch_size=2, **ON_CPUS,
        )  # fmt: skip
        watcher.join(1)
    assert killed
    check_answers(tmp_path / "out", questions)


def test_a_thousand_rows_on_two_actors_of_which_one_is_killed(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.jsonl", 1000)
    killed: list[float] = []
    with ray_cluster(num_cpus=4):
        watcher = kill_when(tmp_path / "out", 8, killed)
        answer_files(
            str(tmp_path / "q.jsonl"), str(tmp_path / "out"), ENGINE, PARAMS,
            batch_size=16, num_engines=2, **ON_CPUS,
        )  # fmt: skip
        watcher.join(1)
        assert killed
        before = sorted(path.name for path in (tmp_path / "out").iterdir())
        answer_files(
            str(tmp_path / "q.jsonl"), str(tmp_path / "out"), ENGINE, PARAMS, **ON_CPUS
        )  # nothing is left to do
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    check_answers(tmp_path / "out", questions)


DRIVER = """
import sys
import ray
from tests.integrations.ray.conftest import ENGINE
from tests.integrations.ray.test_data import ON_CPUS, PARAMS
from rsd_engine.integrations.ray.data import answer_files

address, source, output = sys.argv[1:]
ray.init(address=address)
answer_files(source, output, ENGINE, PARAMS, batch_size=8, num_engines=2, **ON_CPUS)
"""


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_killed_run_goes_on(tmp_path: Path, form: str) -> None:
    """The program that started the run is killed, with all its actors."""
    questions = write_questions(tmp_path / "q.jsonl", 100)
    source, output = tmp_path / "q.jsonl", tmp_path / "out"
    with ray_cluster(num_cpus=4):
        if form == "parquet":
            source = tmp_path / "q.parquet"
            pyarrow.parquet.write_table(pyarrow.json.read_json(tmp_path / "q.jsonl"), source)
        run = start_driver(source, output)
        while len(list(output.glob("*.json"))) < 3:
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
        run.wait()
        while processes(ACTOR):
            time.sleep(0.1)
        assert 0 < num_listed(output) < 101
        answer_files(str(source), str(output), ENGINE, PARAMS, batch_size=8, **ON_CPUS)
        assert num_listed(output) == 101
    check_answers(output, questions)


def start_driver(source: Path, output: Path) -> subprocess.Popen[bytes]:
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(source), str(output)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
