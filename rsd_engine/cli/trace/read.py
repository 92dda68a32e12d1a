"""Reads what `rsd eval` and `rsd generate --output` write, as the records that a page shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import InputLine, parse_question, read_lines
from rsd_engine.evaluate.record import Record
from rsd_engine.evaluate.trace.page import Run

RESULTS = "results.jsonl"  # in a folder of `rsd eval`, whose module loads the engine
_COUNTS = {
    "draft_tokens": "draft_tokens",
    "discarded_tokens": "discarded_tokens",
    "target_tokens": "target_tokens",
    "steps_accepted": "steps_accepted",
    "steps_rejected": "steps_rejected",
    "flops": "flops_generated",
}


def read_runs(paths: Sequence[Path], questions: Path | None) -> list[Run]:
    """The runs of one or two files, or folders of `rsd eval`; `questions` is the input of those
    from `rsd generate`.

    Raises:
        UsageError: a file cannot be read, or a line is no result; it names file and line.
    """
    asked = {} if questions is None else {line.number: line for line in read_lines(questions)}
    names = _distinct_names(paths)
    return [
        Run(name, list(_read_records(_file_of(path), asked, questions)))
        for name, path in zip(names, paths, strict=True)
    ]


def _file_of(path: Path) -> Path:
    return path / RESULTS if path.is_dir() else path


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _read_records(
    path: Path, asked: Mapping[int, InputLine], questions: Path | None
) -> Iterator[Mapping[str, Any]]:
    lines = read_lines(path)
    for line in lines:
        try:
            values = json.loads(line.raw, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            if line is lines[-1]:  # a run was killed while it wrote, or is still running
                return
            raise UsageError(f"{path}, line {line.number}: not JSON") from None
        try:
            if isinstance(values, dict) and "question" in values:
                yield Record.from_json(values).to_json()
            elif isinstance(values, dict) and "line" in values:
                yield from _of_generate(values, _question(values, asked, questions))
            else:
                raise ValueError("neither a result of `rsd eval` nor of `rsd generate`")
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}, line {line.number}: {error}") from None


def _question(
    values: Mapping[str, Any], asked: Mapping[int, InputLine], questions: Path | None
) -> dict[str, str]:
    """What a result of `rsd generate` answers, from its input file, if that was given."""
    number = values["line"]
    identity = str(values.get("id", f"line {number}"))
    text = ""
    if questions is not None:
        line = asked.get(number)
        if line is None or line.digest != values["input"]:
            raise ValueError(f"answers another line {number} than that of {questions}")
        text = "" if "outputs" not in values else _text_of(parse_question(line).given)
    return {"id": identity, "text": text, "answer": "", "source": ""}


def _text_of(given: Mapping[str, Any]) -> str:
    """The question of an input line as text: of a conversation its last message."""
    for key in ("question", "prompt"):
        if key in given:
            return str(given[key])
    if "messages" not in given:
        return ""
    content = given["messages"][-1].get("content") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(str(part.get("text", "")) for part in parts)


def _of_generate(
    values: Mapping[str, Any], question: Mapping[str, str]
) -> Iterator[Mapping[str, Any]]:
    """A record for each sample, with the costs of all; one for a line that failed."""
    outputs = values.get("outputs", [{"text": "", "finish_reason": "error", "steps": []}])
    metrics = values.get("metrics", {})
    for number, output in enumerate(outputs, start=1):
        yield {
            "question": question,
            "method": "rsd generate",
            "settings": {} if len(outputs) == 1 else {"sample": f"{number} of {len(outputs)}"},
            "seed": values.get("seed"),
            "text": output["text"],
            "found": None,
            "correct": None,
            "finish_reason": output["finish_reason"],
            "steps": [{"candidates": [], **step} for step in map(_without_tokens, output["steps"])],
            "error": output.get("error") or (values.get("error") if not output["text"] else None),
            "counts": {new: metrics[old] for old, new in _COUNTS.items() if old in metrics},
            "seconds": None,
        }


def _without_tokens(value: Any) -> Any:
    """The same without token ids, which no reader wants and which are most of a file."""
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if name != "token_ids"}
        return {name: _without_tokens(item) for name, item in kept.items()}
    return [_without_tokens(item) for item in value] if isinstance(value, list) else value
