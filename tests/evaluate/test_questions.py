"""Questions: from files, from the demo, and from data sets like those of the hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rsd_engine.demo.problems import generate
from rsd_engine.evaluate.questions import DATA_SETS, load_questions
from rsd_engine.evaluate.record import Question


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str], list[Any]]:
    """What a stand-in for the package `datasets` has, by id, config and split."""
    found: dict[tuple[str, str | None, str], list[Any]] = {}

    def load_dataset(name: str, config: str | None, *, split: str) -> list[Any]:
        if (name, config, split) not in found:
            raise FileNotFoundError(f"no {name}\nhere")
        return found[name, config, split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return found


def test_the_demo_s_problems() -> None:
    problems = generate(0, "test", 3)
    found = load_questions("demo:3")
    assert found == [
        Question(f"demo-{i}", one.question, str(one.answer), "demo", "demo")
        for i, one in enumerate(problems)
    ]
    assert load_questions("demo")[:3] == found
    assert len(load_questions("demo")) == 100


def test_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"question": "1 + 1? ", "answer": 2.0, "id": "a"},
        "",
        {"problem": "Half?", "answer": "\\frac{1}{2}"},
        {"question": "Why?", "answer": "Add.\n#### 1,200"},
        {"question": "Any?", "final_answer": ["3", "4"], "unique_id": "x/1.json"},
        {"question": "None?", "answer": ""},
        {"question": "Which?", "choices": ["red ", 5], "answer": "B"},
    )
    assert load_questions(str(path)) == [
        Question("mine-a", "1 + 1?", "2", "mine"),
        Question("mine-2", "Half?", "\\frac{1}{2}", "mine"),
        Question("mine-3", "Why?", "1200", "mine"),
        Question("mine-x/1.json", "Any?", "3", "mine"),
        Question("mine-5", "None?", "", "mine"),
        Question("mine-6", "Which?\nAnswer Choices: (A) red (B) 5", "B", "mine", "choice"),
    ]
    assert len(load_questions(f"{path}:2")) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{no"], "line 1: not JSON"),
        ([[1]], "line 1: must be a JSON object, got list"),
        ([{"answer": "1"}], "line 1: needs a text in one of the fields"),
        ([{"question": "  ", "answer": "1"}], "line 1: needs a text"),
        ([{"question": "x"}], "line 1: needs an answer in one of the fields"),
        ([{"question": "x", "answer": True}], "line 1: needs an answer"),
        ([{"question": "x", "answer": "C", "choices": ["a", "b"]}], "letters AB or a number below"),
        ([{"question": "x", "answer": 2, "choices": ["a", "b"]}], "letters AB .*got 2"),
        ([{"question": "x", "answer": 0, "choices": "ab"}], "choices must be a list of 2 to 10"),
        ([{"question": "x", "answer": 1, "id": 4}] * 2, "two questions with the id 'q-4'"),
        ([], "has no questions"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write(tmp_path / "q.jsonl", *rows)
    with pytest.raises(ValueError, match=message):
        load_questions(str(path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nosuch.jsonl", "'nosuch.jsonl' are no file and no data set; give a JSONL file, demo"),
        ("gsm9k", "or one of gsm8k, math500"),
        ("demo:0", "after the colon stands how many to take, at least 1"),
        ("demo:-3", "end with '-3'"),
        ("demo:x", "end with 'x'"),
        ("a/b/c", "are no file"),
    ],
)
def test_what_names_no_questions(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_questions(spec)


def test_data_sets_of_the_hub(hub: dict[tuple[str, str | None, str], list[Any]]) -> None:
    hub["openai/gsm8k", "main", "test"] = [{"question": "How many?", "answer": "5 + 4\n#### 9"}] * 2
    hub["TIGER-Lab/MMLU-STEM", None, "test"] = [
        {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "x"},
    ]
    hub["HuggingFaceH4/MATH-500", None, "test"] = [
        {"problem": "p", "solution": "s", "answer": "3", "unique_id": "test/1.json"}
    ]
    assert [(q.id, q.answer) for q in load_questions("gsm8k")] == [
        ("gsm8k-0", "9"),
        ("gsm8k-1", "9"),
    ]
    assert load_questions("gsm8k:1") == load_questions("gsm8k")[:1]
    assert load_questions("mmlu_stem") == [
        Question(
            "mmlu_stem-0", "Which?\nAnswer Choices: (A) a (B) b (C) c (D) d", "C", "mmlu_stem",
            "choice",
        )
    ]  # fmt: skip
    assert load_questions("math500") == [Question("math500-test/1.json", "p", "3", "math500")]
    assert load_questions("HuggingFaceH4/MATH-500")[0].text == "p"


def test_gpqa_s_choices_are_in_an_order_that_tells_nothing(
    hub: dict[tuple[str, str | None, str], list[Any]],
) -> None:
    hub["Idavidrein/gpqa", "gpqa_diamond", "train"] = [
        {"Question": f"q{i}", "Correct Answer": "right", "Incorrect Answer 1": "w1",
         "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3"}
        for i in range(40)
    ]  # fmt: skip
    found = load_questions("gpqa")
    for question in found:
        assert f"({question.answer}) right" in question.text
    assert {question.answer for question in found} == set("ABCD")
    assert load_questions("gpqa") == found


def test_a_hub_that_cannot_be_reached_is_told_in_a_line(hub: dict[Any, Any]) -> None:
    for name in DATA_SETS:
        with pytest.raises(ValueError, match=r"cannot load .* from the hub: no .* here; with a"):
            load_questions(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'needs datasets.*pip install "rsd-engine\[eval\]"'):
        load_questions("gsm8k")


def test_a_range_of_questions(tmp_path: Path) -> None:
    assert load_questions("demo:3-5") == load_questions("demo:5")[2:]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f'{{"question": "{i}?", "answer": {i}}}\n' for i in range(1, 6)))
    assert [one.answer for one in load_questions(f"{path}:2-4")] == ["2", "3", "4"]
    assert [one.answer for one in load_questions(f"{path}:4-9")] == ["4", "5"]
    with pytest.raises(ValueError, match="has no questions from number 6 on"):
        load_questions(f"{path}:6-9")
    for wrong in ("0-3", "4-3", "-3", "3-", "a-b"):
        with pytest.raises(ValueError, match=f"end with '{wrong}'"):
            load_questions(f"{path}:{wrong}")
