"""`rsd generate --step-candidates`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsd_engine import Beam, Engine, RequestOutput, SamplingParams, Selection, Softmax, Threshold
from tests.cli.conftest import Rsd, read_jsonl, write_jsonl
from tests.tiny_models import TinyModels

OPTIONS = ["--max-tokens=60", "--temperature=1", "--policy=threshold:0.4", "--seed=15"]


@pytest.fixture(scope="module")
def engine(tiny: TinyModels) -> Engine:
    return Engine(**tiny.sources(), policy=Threshold(0.4), max_num_seqs=4)


def by_engine(engine: Engine, count: int, select: Selection) -> RequestOutput:
    params = SamplingParams(
        max_tokens=60, temperature=1.0, seed=15, step_candidates=count, select=select
    )
    [result] = engine.chat([{"role": "user", "content": "the sum"}], params, use_tqdm=False)
    return result


def test_one_prompt(rsd: Rsd, model_args: list[str], engine: Engine) -> None:
    expected = by_engine(engine, 3, Softmax(5.0))
    common = ["generate", "the sum", *model_args, *OPTIONS]
    asked = ["--step-candidates=3", "--select=softmax:5"]
    shown = rsd(*common, *asked, "--show-steps")
    at = -1
    for step in expected.outputs[0].steps:
        assert step.candidates
        for lost in step.candidates:
            at = shown.stdout.index(f"[lost {lost.reward:.2f}] ", at + 1)
        at = shown.stdout.index(f"[{step.source}", at)
    counts = expected.metrics.candidates
    assert f"{counts.taken} of {counts.made} candidates taken; " in shown.stderr
    record = json.loads(rsd(*common, *asked, "--json").stdout)
    assert record["outputs"][0]["text"] == expected.outputs[0].text
    assert record["metrics"]["candidates"]["made"] == counts.made
    [told, wanted] = record["outputs"][0]["steps"][0]["candidates"], expected.outputs[0].steps[0]
    assert [one["text"] for one in told] == [lost.text for lost in wanted.candidates]


def test_a_config_and_a_file(
    rsd: Rsd, model_args: list[str], engine: Engine, tmp_path: Path
) -> None:
    config, output = tmp_path / "rsd.toml", tmp_path / "out.jsonl"
    config.write_text('[sampling]\nstep_candidates = 2\nselect = "beam:2"\n')
    questions: list[object] = [
        {"question": "the sum", "params": {"seed": 15}},
        {
            "question": "the sum",
            "params": {"seed": 15, "step_candidates": 3, "select": "softmax:5"},
        },
        {"question": "the sum", "params": {"select": "best", "step_candidates": 64}},
    ]
    given = write_jsonl(tmp_path / "in.jsonl", questions)
    files = [f"--config={config}", f"--input={given}", f"--output={output}"]
    result = rsd("generate", *model_args, *OPTIONS, *files)
    assert result.exit_code == 1
    beams, softmax, refused = read_jsonl(output)
    for record, (count, select) in ((beams, (2, Beam(2))), (softmax, (3, Softmax(5.0)))):
        [wanted] = by_engine(engine, count, select).outputs
        [found] = record["outputs"]
        assert found["text"] == wanted.text
        assert [[c["text"] for c in step.get("candidates", ())] for step in found["steps"]] == [
            [c.text for c in step.candidates] for step in wanted.steps
        ]
    assert "that takes 64 slots at once, of max_num_seqs=16" in refused["error"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--select=best"], "step_candidates is 1, so there is nothing to select"),
        (["--step-candidates=2", "--select=top"], "select = 'top': unknown; write one of best, "),
        (["--step-candidates=99"], "step_candidates must be in [1, 64], got 99"),
    ],
)
def test_errors_are_one_line(
    rsd: Rsd, model_args: list[str], args: list[str], message: str
) -> None:
    result = rsd("generate", "a", *model_args, *args)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
