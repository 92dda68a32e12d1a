"""`rsd bench serve`, from its options to its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import SamplingParams
from rsd_engine.demo.problems import generate
from tests.cli.conftest import Rsd, write_jsonl
from tests.client.fake_server import FakeServer
from tests.server.conftest import LiveServer


def rows(text: str) -> dict[str, float]:
    """The rows of the first table."""
    table = text.partition("=" * 50 + "\n")[0]
    found = [line.rsplit(":", 1) for line in table.splitlines() if ":" in line]
    return {name: float(value) for name, value in found}


def answered(**how: Any) -> dict[str, str]:
    return {"prompt": json.dumps({"first": 0.0, "gap": 0.0, "chunks": 2, "tokens": 4, **how})}


def test_the_table_has_the_layout_of_vllm(rsd: Rsd, fake: FakeServer, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [answered(first=0.1, gap=0.05, chunks=3, tokens=9)])
    fake.counts = True
    args = ("bench", "serve", f"--base-url={fake.url}", f"--dataset={data}", "--num-prompts=4")
    result = rsd(*args, "--max-concurrency=2", "--request-rate=1000", "--num-warmups=1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[1] == "Successful requests:                     4"
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert lines[-1] == "=" * 50
    found = rows(result.stdout)
    assert found["Total input tokens"] == 40 and found["Total generated tokens"] == 36
    assert found["Maximum request concurrency"] == 2
    assert found["Request rate configured (RPS)"] == 1000
    assert found["Mean tokens per chunk"] == 3
    # Two after two, each of 0.1 s and twice 0.05 s; a busy machine may be late, never early.
    assert 0.39 <= found["Benchmark duration (s)"] <= 1.2
    assert found["Request throughput (req/s)"] == pytest.approx(
        4 / found["Benchmark duration (s)"], rel=0.03
    )
    assert 99 <= found["Median TTFT (ms)"] <= 350
    assert 49 <= found["Mean ITL (ms)"] <= 200
    assert 199 <= found["Mean E2EL (ms)"] <= 600
    assert 12.4 <= found["Mean TPOT (ms)"] <= 50
    # 4 answers count, the warm-up does not: each 4 drafts of 3 tokens, of which 9 were accepted
    assert found["Drafts"] == 16 and found["Draft tokens"] == 48
    assert found["Accepted tokens"] == 36 and found["Acceptance rate (%)"] == 75
    assert found["Accepted tokens per draft"] == 2.25


def test_failures_are_counted_and_shown(rsd: Rsd, fake: FakeServer, tmp_path: Path) -> None:
    data = write_jsonl(
        tmp_path / "data.jsonl", [answered(), answered(status=503), answered(ends="cut")]
    )
    args = ("bench", "serve", f"--base-url={fake.url}", f"--dataset={data}")
    result = rsd(*args, "--num-prompts=6")
    assert result.exit_code == 0
    found = rows(result.stdout)
    assert found["Successful requests"] == 2 and found["Failed requests"] == 4
    assert "2 x the server answered 503: no room here" in result.stderr
    assert "2 x the stream ended without a finish_reason" in result.stderr
    write_jsonl(data, [answered(status=503)])
    result = rsd(*args, "--num-prompts=3")
    assert result.exit_code == 1
    assert rows(result.stdout)["Failed requests"] == 3


def test_a_sweep_and_its_file(rsd: Rsd, fake: FakeServer, tmp_path: Path) -> None:
    data, out = write_jsonl(tmp_path / "data.jsonl", [answered()]), tmp_path / "out.json"
    args = [
        "bench", "serve", f"--base-url={fake.url}", f"--dataset={data}", "--num-prompts=3",
        "--max-concurrency=1,2", "--request-rate=500,inf", f"--save-result={out}",
    ]  # fmt: skip
    result = rsd(*args)
    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines()[-4:]]
    assert [row[:4] for row in table] == [
        [rate, limit, "3", "0"] for rate in ("500", "inf") for limit in ("1", "2")
    ]
    saved = json.loads(out.read_text())
    loads = [run["load"] for run in saved["runs"]]
    assert [(load["request_rate"], load["max_concurrency"]) for load in loads] == [
        (500, 1), (500, 2), ("inf", 1), ("inf", 2),
    ]  # fmt: skip
    assert saved["model"] == "fake" and saved["runs"][0]["completed"] == 3
    assert rsd(*args).exit_code == 2, "results are not overwritten"
    assert json.loads(out.read_text()) == saved


def test_json_and_no_usage(rsd: Rsd, fake: FakeServer, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [answered()])
    fake.usage = False
    args = ("bench", "serve", f"--base-url={fake.url}", f"--dataset={data}", "--num-prompts=2")
    [run] = json.loads(rsd(*args, "--json").stdout)["runs"]
    assert run["completed"] == 2 and run["output_tokens"] is None and run["tpot"] is None
    assert "Total generated tokens:                  -" in rsd(*args).stdout


def test_against_our_own_server(rsd: Rsd, live: LiveServer) -> None:
    args = ("bench", "serve", f"--base-url={live.url}/v1", "--num-prompts=4", "--seed=5")
    fields = {"temperature": 0, "seed": 1}
    first = json.loads(rsd(*args, "--json", "--extra-body", json.dumps(fields)).stdout)["runs"][0]
    assert first["completed"] == 4 and not first["errors"]
    # The same, asked of the engine itself.
    params = SamplingParams(temperature=0.0, seed=1, max_tokens=256)
    conversations = [
        [{"role": "user", "content": problem.question}] for problem in generate(5, "test", 4)
    ]
    engine = live.service.engine.engine
    results = engine.chat(conversations, params, use_tqdm=False)
    assert first["output_tokens"] == sum(len(r.outputs[0].token_ids) for r in results)
    assert first["input_tokens"] == sum(len(r.prompt_token_ids) for r in results)
    steps = sum(r.metrics.steps_accepted + r.metrics.steps_rejected for r in results)
    accepted = sum(r.metrics.draft.tokens_generated for r in results)
    assert first["speculation"]["rounds"] == steps
    assert first["speculation"]["accepted"] == accepted


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--request-rate=0", "--request-rate must be numbers above 0, or inf, got '0'"),
        ("--request-rate=1,fast", "--request-rate must be numbers above 0, or inf, got 'fast'"),
        ("--max-concurrency=1,0", "--max-concurrency must be integers in [1, 1000], got '0'"),
        ("--num-prompts=1001", "--num-prompts 1001: more than 1000 cannot run at once"),
        ("--extra-body=[1]", "--extra-body must be a JSON object"),
        ("--dataset=nowhere.jsonl", "cannot read nowhere.jsonl"),
        ("--save-result=/nowhere/x", "--save-result /nowhere/x cannot be made"),
        ("--endpoint=embeddings", "embeddings"),
    ],
)
def test_bad_values_are_told_before_any_work(rsd: Rsd, argument: str, said: str) -> None:
    result = rsd("bench", "serve", "--base-url=http://127.0.0.1:1/v1", argument)
    assert result.exit_code == 2
    assert said in result.stderr


def test_bad_lines_of_a_dataset(rsd: Rsd, tmp_path: Path) -> None:
    def refused(line: object) -> str:
        data = write_jsonl(tmp_path / "data.jsonl", [{"question": "?"}, line])
        result = rsd("bench", "serve", "--base-url=http://127.0.0.1:1/v1", f"--dataset={data}")
        assert result.exit_code == 2
        return result.stderr

    assert "line 2: not JSON" in refused("{")
    assert 'line 2: needs "question" or "prompt"' in refused({"prompt_token_ids": [1]})


def test_the_extra_is_named(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    for name in [name for name in sys.modules if name.startswith("rsd_engine.client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "rsd_engine.cli.bench.sweep", raising=False)
    result = rsd("bench", "serve")
    assert result.exit_code == 2 and "install rsd-engine[client]" in result.stderr


def test_no_server(rsd: Rsd) -> None:
    result = rsd("bench", "serve", "--base-url=http://127.0.0.1:1/v1", "--num-prompts=1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot reach the server")
