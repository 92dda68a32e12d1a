"""What tells whether a run may begin or go on: ids, settings, the folders beside the results."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

import rsd_engine.integrations.ray
from rsd_engine import SamplingParams, Threshold
from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.integrations.ray.data import answer_files, answer_rows, check_ids
from rsd_engine.integrations.ray.resuming import Run

ENGINE = {"draft": "d", "target": "t", "prm": "p", "policy": Threshold(0.5)}
PARAMS = SamplingParams(temperature=0.0)


def open_run(folder: Path, **changed: Any) -> Run:
    given: dict[str, Any] = {"engine": ENGINE, "params": PARAMS, "chat": ChatSettings()} | changed
    return Run.open(str(folder / "out"), **given)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that was stopped: one file of results is listed, another was being written."""
    open_run(tmp_path).begin()
    for name in ("out/a.json", "out.checkpoint/rows/a.parquet"):
        (tmp_path / name).write_text("x")
    (tmp_path / "out.checkpoint/rows/b.pending.parquet").write_text("x")
    return tmp_path


def test_a_run_goes_on(begun: Path) -> None:
    run = open_run(begun)
    assert run.output == str(begun / "out")
    assert run.checkpoint == str(begun / "out.checkpoint" / "rows")
    run.begin()
    assert (begun / "out" / "a.json").read_text() == "x"


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.open("some/out/", ENGINE, None, ChatSettings())
    run.begin()
    assert run.output == str(tmp_path / "some/out")
    assert (tmp_path / "some/out.checkpoint/rows").is_dir()
    assert [p.name for p in (tmp_path / "some").iterdir() if "out" not in p.name] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": {**ENGINE, "target": "other"}},
        {"engine": {**ENGINE, "policy": Threshold(0.6)}},
        {"params": SamplingParams(temperature=0.5)},
        {"params": None},
        {"chat": ChatSettings(system="be brief")},
    ],
)
def test_other_settings_do_not_go_on(begun: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="written with other models or settings"):
        open_run(begun, **changed)


def test_slots_and_memory_may_change(begun: Path) -> None:
    open_run(begun, engine={**ENGINE, "max_num_seqs": 99, "device": "cpu"})


def test_results_that_nobody_lists_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    open_run(tmp_path)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="does not tell which rows they answer"):
        open_run(tmp_path)


def test_results_that_are_gone_are_missed(begun: Path) -> None:
    (begun / "out" / "a.json").unlink()
    with pytest.raises(ValueError, match="whose results are gone"):
        open_run(begun)
    (begun / "out.checkpoint/rows/a.parquet").unlink()
    open_run(begun)  # what was being written when it was stopped, Ray Data clears away


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([["a", "b"], ["c", "a"]], "'a' is there 2 times"),
        ([[1, 2], [3, 2]], "2 is there 2 times"),
        ([["a", None]], "1 have no id"),
        ([[1.5, 2.5]], "must have text or integers, it has double"),
    ],
)
def test_ids_must_tell_rows_apart(blocks: list[list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_ids([pa.table({"key": ids}) for ids in blocks], "key")


def test_good_ids() -> None:
    check_ids([], "key")
    check_ids([pa.table({"key": ["a"]}), pa.table({"key": []}), pa.table({"key": ["b"]})], "key")
    check_ids([pa.table({"key": [1, 2]}), pa.table({"key": [3]})], "key")


def test_bad_arguments_are_refused_before_anything_starts() -> None:
    nothing = cast(Any, None)
    with pytest.raises(ValueError, match=r"unknown arguments \['tarket'\]; allowed: .*'target'"):
        answer_rows(nothing, {"tarket": "t"})
    with pytest.raises(ValueError, match="form must be 'json' or 'parquet', got 'csv'"):
        answer_files("in.jsonl", "out", ENGINE, form=cast(Any, "csv"))
    with pytest.raises(ValueError, match="source names no file"):
        answer_files([], "out", ENGINE)


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"rsd-engine\[ray\]\"") as caught:
        importlib.reload(rsd_engine.integrations.ray)
    assert "\n" not in str(caught.value)
