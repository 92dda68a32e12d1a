"""The actor of a Ray Data stage, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import Engine, EngineDeadError
from rsd_engine.demo.problems import generate
from rsd_engine.engine.chat.questions import question_seed
from rsd_engine.integrations.ray import worker as worker_module
from rsd_engine.integrations.ray.worker import Worker
from tests.integrations.ray.conftest import PARAMS, table

PROBLEMS = generate(seed=1, split="test", num=8)
ROWS: list[dict[str, Any]] = [
    {"id": f"p{i}", "question": p.question} for i, p in enumerate(PROBLEMS)
]


def texts(worker: Worker, rows: Sequence[dict[str, Any]]) -> dict[str, str | None]:
    answers = worker(table(rows)).to_pylist()
    return {row["id"]: row["text"] for row in answers}


def test_answers_are_those_of_the_engine(worker: Worker) -> None:
    engine: Engine = worker._engine
    params = [replace(PARAMS, seed=question_seed(0, row["id"])) for row in ROWS]
    chats = [[{"role": "user", "content": row["question"]}] for row in ROWS]
    expected = [r.outputs[0].text for r in engine.chat(chats, params, use_tqdm=False)]
    assert list(texts(worker, ROWS).values()) == expected
    assert len(set(expected)) == len(expected)


def test_a_row_does_not_depend_on_its_batch(worker: Worker) -> None:
    together = texts(worker, ROWS)
    alone: dict[str, str | None] = {}
    for row in reversed(ROWS):
        alone |= texts(worker, [row])
    assert alone == together


def test_batches_at_once(worker: Worker) -> None:
    """As Ray Data's threads ask, with `enable_true_multi_threading`."""
    found: dict[str, str | None] = {}
    threads = [
        threading.Thread(target=lambda part=part: found.update(texts(worker, part)))
        for part in (ROWS[:3], ROWS[3:6], ROWS[6:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == texts(worker, ROWS)


def test_a_bad_row_harms_no_other(worker: Worker) -> None:
    bad = [
        {"id": "no question"},
        {"id": "long", "prompt": "word " * 2000},
        {"id": "template", "messages": '[{"role": "user", "content": 5}]'},
        {"id": "params", "question": "a", "params": '{"temperature": -1}'},
    ]
    mixed = [bad[0], ROWS[0], bad[1], bad[2], ROWS[1], bad[3]]
    answers = {row["id"]: row for row in worker(table(mixed)).to_pylist()}
    for row in bad:
        assert answers[row["id"]]["error"]
        assert answers[row["id"]]["text"] is None
    assert "max_model_len=1024" in answers["long"]["error"]
    assert "temperature" in answers["params"]["error"]
    good = texts(worker, ROWS[:2])
    assert {name: answers[name]["text"] for name in good} == good
    assert answers["p0"]["error"] is None


def test_samples_become_rows(worker: Worker) -> None:
    row = {**ROWS[0], "params": {"n": 3}}
    answers = worker(table([row, ROWS[1]])).to_pylist()
    assert [(a["id"], a["sample"]) for a in answers] == [("p0", 0), ("p0", 1), ("p0", 2), ("p1", 0)]
    assert [a["metrics"] is None for a in answers] == [False, True, True, False]
    tokens = [a["metrics"] and a["metrics"]["draft_tokens"] for a in answers]
    assert tokens[0] > 0


def test_prompts_of_all_kinds(worker: Worker) -> None:
    question = ROWS[0]["question"]
    kinds = [
        {"id": "p0", "question": question},
        {"id": "p0", "messages": [{"role": "user", "content": question}]},
        {"id": "p0", "prompt": question},  # becomes a conversation by itself, as a question does
    ]
    assert len({texts(worker, [row])["p0"] for row in kinds}) == 1
    ids = worker._engine.get_tokenizer().encode("2 + 3 =")
    answers = worker(table([{"prompt_token_ids": ids, "question": "q"}])).to_pylist()
    assert answers[0]["error"] is None


@pytest.mark.parametrize("before", [False, True])
def test_a_dead_gpu_ends_the_process_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    class Context:
        was_current_actor_reconstructed = before

    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        assert code
        raise Ended

    def fail(*given: object, **more: object) -> None:
        raise EngineDeadError("the GPU is gone")

    monkeypatch.setattr(worker_module.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(worker_module.ray, "get_runtime_context", Context)
    monkeypatch.setattr(worker_module.os, "_exit", end)
    monkeypatch.setattr(worker._engine, "streams", fail)
    with pytest.raises(EngineDeadError if before else Ended):
        worker(table(ROWS[:1]))
