"""`rsd profile`: every op is timed, and the sums add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rsd_engine import Engine, SamplingParams
from rsd_engine.cli.app import app
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from tests.tiny_models import make_tiny_models

runner = CliRunner()


def test_ops_by_role_and_their_roofline() -> None:
    result = runner.invoke(app, ["profile", "--problems", "2", "--max-num-seqs", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    ops, roles = found["ops"], found["roles"]
    assert {"schedule", "DRAFT.forward", "TARGET.write", "PRM.score"} <= ops.keys()
    passes = roles["DRAFT"]["passes"]
    assert ops["DRAFT.forward"]["calls"] == ops["DRAFT.write"]["calls"] == passes
    passes = sum(role["passes"] for role in roles.values())
    assert ops["schedule"]["calls"] >= passes
    assert 0 < sum(op["seconds"] for op in ops.values()) <= found["seconds"]
    for role in roles.values():
        assert role["roofline_seconds"] > 0
    assert found["tokens"] == kept_tokens(problems=2)
    assert "KV:" not in result.output


def kept_tokens(problems: int) -> int:
    """Of the same questions, by an engine of its own; two questions warm up the profiler's."""
    questions = [p.question for p in generate(0, "test", problems + 2)[2:]]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0.0, max_tokens=256)
    with Engine(checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm")) as engine:
        results = engine.chat(chats, params, use_tqdm=False)
    return sum(len(result.outputs[0].token_ids) for result in results)


def test_tables_and_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    result = runner.invoke(
        app, ["profile", "--problems", "1", "--max-tokens", "20", "--trace", str(trace)]
    )
    assert result.exit_code == 0, result.output
    assert "x roofline" in result.output and "forward" in result.output
    assert json.loads(trace.read_text())["traceEvents"]


def test_two_models_are_not_enough() -> None:
    result = runner.invoke(app, ["profile", "--draft", "a", "--target", "b"])
    assert result.exit_code != 0 and "--draft, --target and --prm" in result.output


def test_other_executors_do_not_time_ops(tmp_path: Path) -> None:
    with (
        Engine(**make_tiny_models(tmp_path).sources(), device="cpu") as engine,
        pytest.raises(ValueError, match="executor='profile'"),
    ):
        engine.op_times  # noqa: B018
