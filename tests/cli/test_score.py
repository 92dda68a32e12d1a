"""`rsd score`: one line of JSON for each line of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine
from tests.cli.conftest import Rsd, write_jsonl
from tests.tiny_models import TinyModels


def test_every_line_is_scored(
    rsd: Rsd, model_args: list[str], tiny: TinyModels, tmp_path: Path
) -> None:
    solutions: list[dict[str, Any]] = [
        {"question": "What is 2 + 3?", "steps": ["we add.", "5"]},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "a\n\nb"},
            ]
        },
    ]
    path = write_jsonl(tmp_path / "solutions.jsonl", solutions)
    found = [json.loads(line) for line in rsd("score", path, *model_args).stdout.splitlines()]
    with Engine(**tiny.sources(), device="cpu") as engine:
        wanted = [one.to_dict() for one in engine.score(solutions)]
    assert found == json.loads(json.dumps(wanted)) and len(found[1]["steps"]) == 2
    assert rsd("score", "-", *model_args, input="\n").stdout == ""
    other = rsd("score", path, *model_args, "--prm-separator", "$").stdout.splitlines()
    assert [json.loads(line) for line in other] != found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("3", "solutions[1]: a conversation must be"),
        ('{"question": "x"}', "solutions[1]: a solution dict must have 'question' and 'steps'"),
    ],
)
def test_a_bad_line_is_named(
    rsd: Rsd, model_args: list[str], tmp_path: Path, line: str, message: str
) -> None:
    good = {"question": "x", "steps": ["a"]}
    result = rsd("score", write_jsonl(tmp_path / "bad.jsonl", [good, line]), *model_args)
    assert result.exit_code != 0 and message in result.stderr and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
