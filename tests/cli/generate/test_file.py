"""`rsd generate --input`: every line is answered or reported, nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Clip, Engine, SamplingParams
from rsd_engine.engine.chat.questions import question_seed
from tests.cli.conftest import Rsd, read_jsonl, write_jsonl
from tests.tiny_models import TinyModels

OPTIONS = ["--max-tokens=24", "--temperature=1", "--policy=clip", "--seed=5"]
GOOD: dict[int, Any] = {
    1: {"id": "a", "prompt": "the sum"},
    3: {"question": "two", "answer": "2"},
    4: {"messages": [{"role": "user", "content": "is"}], "params": {"temperature": 0.0, "seed": 8}},
    6: {"prompt_token_ids": [0, 9, 10], "question": "hm", "id": 7},
    9: {"prompt": "x", "params": {"policy": "constant:1", "max_tokens": 4}},
}
BAD: dict[int, tuple[Any, str]] = {
    2: ("{not json", "not JSON"),
    5: ([1, 2], "must be a JSON object"),
    7: ({"prompt_token_ids": [0, 99999]}, "prompt_token_ids must be in"),
    8: ({"prompt": "x", "params": {"temprature": 1}}, "unknown sampling parameters"),
    10: ({"prompt": "x", "id": "last", "params": {"policy": "clap"}}, "policy = 'clap'"),
    11: ({"messages": [{"content": "x"}]}, "a message needs 'role' and 'content'"),
    12: ({"prompt": "x", "params": {"stop": 5}}, "stop must be"),
    13: ({"prompt_token_ids": []}, "prompt is empty"),
    14: (
        {"messages": [{"role": "user", "content": None}]},
        "must be text or a list of text parts, got None",
    ),
    15: ({"messages": [{"role": "alien"}]}, "role 'alien' must be text or a list of text parts"),
    16: ({"prompt": "x", "temperature": 0}, "['temperature'] must be inside"),
}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    lines = {**GOOD, **{number: value for number, (value, _) in BAD.items()}}
    return write_jsonl(tmp_path / "q.jsonl", [lines[number] for number in sorted(lines)])


def test_bad_lines_are_reported_and_the_rest_goes_on(
    rsd: Rsd, model_args: list[str], tmp_path: Path, questions: Path
) -> None:
    output = tmp_path / "r.jsonl"
    result = rsd("generate", *model_args, *OPTIONS, "-i", questions, "-o", output)
    assert result.exit_code == 1
    assert result.stdout == ""
    records = {record["line"]: record for record in read_jsonl(output)}
    assert list(records) == sorted([*GOOD, *BAD])
    for number, (_, message) in BAD.items():
        assert message in records[number]["error"]
        assert f"q.jsonl, line {number}: {records[number]['error']}" in result.stderr
    assert {n: r["id"] for n, r in records.items() if "id" in r} == {1: "a", 6: 7, 10: "last"}
    assert all(records[number]["outputs"] for number in GOOD)
    assert "11 of 16 lines failed; 5 have results" in result.stderr
    before = output.read_bytes()
    again = rsd("generate", *model_args, *OPTIONS, "-i", questions, "-o", output)
    assert again.exit_code == 1
    assert output.read_bytes() == before


def test_results_are_the_engine_s(
    rsd: Rsd, model_args: list[str], tiny: TinyModels, questions: Path
) -> None:
    result = rsd("generate", *model_args, *OPTIONS, "-i", questions)
    records = {r["line"]: r for r in map(json.loads, result.stdout.splitlines())}
    engine = Engine(**tiny.sources(), policy=Clip(), max_num_seqs=2)

    def params(line: int) -> SamplingParams:
        return SamplingParams(max_tokens=24, temperature=1.0, seed=question_seed(5, line))

    expected = {
        1: engine.chat([{"role": "user", "content": "the sum"}], params(1), use_tqdm=False),
        3: engine.chat([{"role": "user", "content": "two"}], params(3), use_tqdm=False),
        4: engine.chat(
            GOOD[4]["messages"],
            SamplingParams(max_tokens=24, temperature=0.0, seed=8),
            use_tqdm=False,
        ),
        6: engine.generate(
            {"prompt_token_ids": [0, 9, 10], "question": "hm"}, params(6), use_tqdm=False
        ),
    }
    for line, [wanted] in expected.items():
        [output], metrics = records[line]["outputs"], records[line]["metrics"]
        assert output["token_ids"] == list(wanted.outputs[0].token_ids)
        assert output["text"] == wanted.outputs[0].text
        assert metrics["flops"] == wanted.metrics.flops.generated
        assert records[line]["seed"] == wanted.seed
    assert len(records[9]["outputs"][0]["token_ids"]) <= 4
    assert records[9]["metrics"]["steps_rejected"] == 0


def test_all_good_is_exit_code_0_and_repeats_nothing(
    rsd: Rsd, model_args: list[str], tmp_path: Path
) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [GOOD[1]])
    output = tmp_path / "r.jsonl"
    args = ["generate", *model_args, *OPTIONS, "-i", questions, "-o", output]
    first = rsd(*args)
    assert first.exit_code == 0
    assert "1 request in" in first.stderr
    second = rsd(*args)
    assert second.exit_code == 0
    assert "nothing to do" in second.stderr and "requests in" not in second.stderr
    with questions.open("a") as file:
        file.write(json.dumps(GOOD[3]) + "\n")
    third = rsd(*args)
    assert "1 of 2 lines have their results, going on" in third.stderr
    assert [record["line"] for record in read_jsonl(output)] == [1, 2]


@pytest.mark.parametrize("changed", [["--temperature=0.5"], ["--policy=constant:1"], ["--raw"]])
def test_other_settings_do_not_go_on(
    rsd: Rsd, model_args: list[str], tmp_path: Path, changed: list[str]
) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [GOOD[1]])
    output = tmp_path / "r.jsonl"
    args = ["generate", *model_args, *OPTIONS, "-i", questions, "-o", output]
    rsd(*args)
    before = output.read_bytes()
    result = rsd(*args, *changed)
    assert result.exit_code == 2
    assert "other models or settings" in result.stderr
    assert output.read_bytes() == before
    assert rsd(*args, *changed, "--overwrite").exit_code == 0
    assert output.read_bytes() != before


def test_slots_and_memory_may_change(rsd: Rsd, model_args: list[str], tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [GOOD[1], GOOD[3]])
    output = tmp_path / "r.jsonl"
    args = ["generate", *model_args, *OPTIONS, "-i", questions, "-o", output]
    rsd(*args)
    output.write_bytes(output.read_bytes().splitlines(keepends=True)[0])
    result = rsd(*args, "--max-num-seqs=1", "--kv-cache-memory=4MB", "--device=cpu")
    assert result.exit_code == 0
    assert [record["line"] for record in read_jsonl(output)] == [1, 2]


def test_input_is_never_overwritten(rsd: Rsd, model_args: list[str], tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [GOOD[1]])
    before = questions.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(questions)
    for output in (questions, link):
        result = rsd("generate", *model_args, "-i", questions, "-o", output, "--overwrite")
        assert result.exit_code == 2
        assert "the same file" in result.stderr
        assert questions.read_bytes() == before


def test_questions_from_stdin(rsd: Rsd, model_args: list[str]) -> None:
    text = json.dumps(GOOD[1]) + "\n"
    result = rsd("generate", *model_args, *OPTIONS, "-i", "-", input=text)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["id"] == "a"


def test_no_models_are_loaded_for_nothing(rsd: Rsd, tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", ["nope"])
    result = rsd("generate", "--target=/no/such/model", "-i", questions)
    assert result.exit_code == 1
    assert "line 1: not JSON" in result.stderr and "/no/such" not in result.stderr
