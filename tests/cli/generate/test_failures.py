"""A run over a file when something fails in it: that line has its error, and the others go on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, Threshold
from rsd_engine.cli.generate.file import run_file
from rsd_engine.cli.generate.settings import RunSettings
from rsd_engine.engine.chat.questions import ChatSettings
from rsd_kernels.state.enums import Role
from tests.cli.conftest import read_jsonl, write_jsonl
from tests.engine.harness.scripted import spoiled
from tests.tiny_models import TinyModels

PROMPTS = ["ab", "abc", "abcd"]  # the second is the only one of four tokens, with bos


@pytest.fixture
def engine(tiny: TinyModels) -> Iterator[Engine]:
    with closing(Engine(**tiny.sources(), policy=Threshold(0.5), max_num_seqs=2)) as built:
        yield built


def answer(engine: Engine, folder: Path) -> tuple[int, dict[int, dict[str, Any]]]:
    """Exit code, and the records by line."""
    source = write_jsonl(folder / "q.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    sampling = {"temperature": 0.0, "max_tokens": 30, "max_step_tokens": 4}
    settings = RunSettings(lambda: engine, sampling, ChatSettings(chat=False), "s")
    code = run_file(settings, source, folder / "r.jsonl", overwrite=False)
    return code, {record["line"]: record for record in read_jsonl(folder / "r.jsonl")}


def test_a_request_that_fails_is_the_error_of_its_line(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with spoiled(engine, Role.DRAFT, math.nan, prompt_length=4):
        code, records = answer(engine, tmp_path)
    assert code == 1 and list(records) == [1, 2, 3]
    assert "draft model gave logits that are not finite" in records[2]["error"]
    assert records[2]["outputs"][0]["finish_reason"] == "error"
    assert "error" not in records[1] and "error" not in records[3]
    shown = capsys.readouterr().err
    assert f"q.jsonl, line 2: {records[2]['error']}" in shown
    assert "1 of 3 lines failed; 2 have results" in shown
    before = records
    code, again = answer(engine, tmp_path)  # the command is given again: only that line is asked
    assert code == 0 and "error" not in again[2]
    assert [again[1], again[3]] == [before[1], before[3]]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("the pages of this one need 9 GB"), "the pages of this one need 9 GB"),
        (MemoryError(), "out of memory"),
        (RecursionError("too\n deep"), "too deep"),
        (OverflowError("int too large"), "int too large"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(
    error: Exception, said: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = engine.stream

    def failing(prompt: Any, *args: Any, **options: Any) -> Any:
        if prompt["prompt"] == PROMPTS[1]:
            raise error
        return stream(prompt, *args, **options)

    monkeypatch.setattr(engine, "stream", failing)
    code, records = answer(engine, tmp_path)
    assert code == 1 and list(records) == [1, 2, 3]
    assert {number: r["error"] for number, r in records.items() if "error" in r} == {2: said}
    assert "\n" not in json.dumps(records[2])
