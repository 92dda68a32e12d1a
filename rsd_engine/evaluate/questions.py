"""Questions with known answers: a JSONL file, the demo's problems, or a data set of the hub."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_engine.demo.problems import Problem, generate
from rsd_engine.evaluate.missing import needs_package
from rsd_engine.evaluate.record import Question

DEMO = "demo"
DEMO_COUNT = 100
_TEXT = ("question", "problem", "prompt", "Question")
_ANSWER = ("answer", "final_answer", "Correct Answer")
_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))  # of GPQA
_IDS = ("id", "unique_id")


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub."""

    hub: str
    title: str
    config: str | None = None
    split: str = "test"


DATA_SETS: Mapping[str, DataSet] = {
    "gsm8k": DataSet("openai/gsm8k", "grade-school word problems", "main"),
    "math500": DataSet("HuggingFaceH4/MATH-500", "500 problems of MATH"),
    "olympiadbench": DataSet(
        "Hothan/OlympiadBench", "olympiads, text only, English", "OE_TO_maths_en_COMP", "train"
    ),
    "gaokao2023en": DataSet(
        "MARIO-Math-Reasoning/Gaokao2023-Math-En", "Chinese entrance exams", split="train"
    ),
    "amc": DataSet("AI-MO/aimo-validation-amc", "AMC 12 of 2022 and 2023", split="train"),
    "aime": DataSet("HuggingFaceH4/aime_2024", "AIME of 2024", split="train"),
    "minerva": DataSet("math-ai/minervamath", "undergraduate science"),
    "mmlu_stem": DataSet("TIGER-Lab/MMLU-STEM", "multiple choice, science"),
    "gpqa": DataSet(
        "Idavidrein/gpqa", "multiple choice, graduate science", "gpqa_diamond", "train"
    ),
}


def load_questions(spec: str) -> list[Question]:
    """The questions that `spec` names.

    Args:
        spec: a JSONL file, "demo", a name of `DATA_SETS`, or a hub id such as "openai/gsm8k", each
            with ":N" behind it to take the first N, or ":M-N" to take those from M to N.

    Raises:
        ValueError: there are none of that name, or what is there has no questions and answers.
        ImportError: a data set of the hub needs the package datasets.
    """
    name, skipped, last = _name_and_range(spec)
    if name == DEMO:
        return demo_questions(generate(0, "test", last or DEMO_COUNT))[skipped:]
    path = Path(name).expanduser()
    if path.is_file():
        found = _questions(_file_rows(path), path.stem, f"{name}, line", 1)
    elif name in DATA_SETS:
        found = _questions(_hub_rows(DATA_SETS[name]), name, f"{name}, row", 0)
    elif name.count("/") == 1 and not path.suffix:
        found = _questions(_hub_rows(DataSet(name, name)), name, f"{name}, row", 0)
    else:
        raise ValueError(
            f"questions {name!r} are no file and no data set; give a JSONL file, demo, a hub id, "
            f"or one of {', '.join(DATA_SETS)}"
        )
    found = found[skipped:last]
    if not found:
        where = f" from number {skipped + 1} on" if skipped else ""
        raise ValueError(f"{name} has no questions{where}")
    _check_ids(found, name)
    return found


def _name_and_range(spec: str) -> tuple[str, int, int | None]:
    """The name, how many to leave out, and the number of the last one if it is told."""
    name, colon, wanted = spec.rpartition(":")
    if not colon:
        return spec, 0, None
    first, dash, last = wanted.rpartition("-")
    first = first if dash else "1"
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(
            f"questions {spec!r} end with {wanted!r}; after the colon stands how many to take, at "
            "least 1, or which ones, such as 201-300"
        )
    return name, int(first) - 1, int(last)


def demo_questions(problems: Iterable[Problem]) -> list[Question]:
    """Problems of the demo family as questions, named by their numbers."""
    return [
        Question(f"{DEMO}-{number}", problem.question, str(problem.answer), DEMO, "demo")
        for number, problem in enumerate(problems)
    ]


def _file_rows(path: Path) -> Iterable[tuple[int, Any]]:
    """The values of the lines that are not blank, with their numbers from 1."""
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None


def _hub_rows(wanted: DataSet) -> Iterable[tuple[int, Any]]:
    with needs_package("datasets", "eval"):
        import datasets
    try:
        rows = datasets.load_dataset(wanted.hub, wanted.config, split=wanted.split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load {wanted.hub} ({wanted.split}) from the hub: {reason:.200}; with a copy "
            "on disk give --questions FILE.jsonl"
        ) from None
    return enumerate(rows)


def _questions(
    rows: Iterable[tuple[int, Any]], source: str, place: str, first: int
) -> list[Question]:
    found = []
    for number, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(f"must be a JSON object, got {type(row).__name__}")
            identity = next((row[key] for key in _IDS if row.get(key) is not None), number - first)
            found.append(_question(row, f"{source}-{identity}", source))
        except ValueError as error:
            raise ValueError(f"{place} {number}: {error}") from None
    return found


def _question(row: Mapping[str, Any], identity: str, source: str) -> Question:
    """A row, with the fields of any of the data sets."""
    text = _first(row, _TEXT)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"needs a text in one of the fields {list(_TEXT)}, has {sorted(row)}")
    answer = _first(row, _ANSWER)
    if _WRONG[0] in row:
        choices = _shuffled(text, [answer, *(row[key] for key in _WRONG)])
        return _choice(identity, text, choices, choices.index(answer), source)
    if row.get("choices") is not None:
        return _choice(identity, text, row["choices"], answer, source)
    return Question(identity, text.strip(), _right_answer(answer), source)


def _choice(identity: str, text: str, choices: Any, right: Any, source: str) -> Question:
    """As the RSD authors' code asks: the choices behind the question, each with its letter."""
    if not isinstance(choices, list) or not 2 <= len(choices) <= 10:
        raise ValueError(f"choices must be a list of 2 to 10, got {choices!r:.60}")
    letters = "ABCDEFGHIJ"[: len(choices)]
    if type(right) is int and 0 <= right < len(letters):
        right = letters[right]
    if not isinstance(right, str) or len(right) != 1 or right not in letters:
        raise ValueError(
            f"the answer must be one of the letters {letters} or a number below {len(letters)}, "
            f"got {right!r}"
        )
    offered = " ".join(
        f"({letter}) {str(choice).strip()}" for letter, choice in zip(letters, choices, strict=True)
    )
    return Question(identity, f"{text.strip()}\nAnswer Choices: {offered}", right, source, "choice")


def _right_answer(given: Any) -> str:
    """GSM8K ends a solution with the answer behind ####; others list several ways to write it.

    One of GaoKao's is empty. It stays a question, which nobody answers rightly, as the sizes of
    data sets are known.
    """
    value = given[0] if isinstance(given, list) and given else given
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"needs an answer in one of the fields {list(_ANSWER)}, got {given!r:.60}")
    _, marked, last = str(value).rpartition("####")
    return last.strip().replace(",", "") if marked else str(value).strip()


def _shuffled(text: str, choices: list[str]) -> list[str]:
    """In an order that depends on the texts alone; the right one must not always be the first."""
    return sorted(choices, key=lambda one: hashlib.blake2b(f"{text}\0{one}".encode()).digest())


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _check_ids(questions: list[Question], name: str) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"{name} has two questions with the id {question.id!r}")
        seen.add(question.id)
