"""Figures in documents are those of the results that the repository keeps."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from tests.docs.documents import ROOT, document

BENCHMARKS, README = document("docs/benchmarks.md"), document("README.md")
CEILING = "ceiling of RSD: its passes read the weights, its rows are multiplied"
PAPER, CACHED = "paper's arrangement", "paper's arrangement, draft and target with a prefix cache"
CONTENDERS = {
    "this engine, RSD": "ours, RSD",
    "this engine, target alone": "ours, target alone",
    CACHED: f"{PAPER}, prefix cache",
    "paper's arrangement, everything read again": "paper's arrangement, read again",
    "paper's arrangement, a call of `generate` a step": "paper's arrangement, generate",
    "transformers, target alone": "transformers, target alone",
    "transformers, target assisted by the draft, token by token":
        "transformers, target assisted by the draft",
}  # fmt: skip
DECODERS = {
    "this engine": "ours",
    "llama.cpp, fp32": "llama.cpp",
    "vLLM, compiled for CPUs": "vLLM",
    "transformers `generate`, compiled": "transformers, compiled",
    "transformers `generate`": "transformers",
}


def results(name: str) -> dict[str, Any]:
    text = (ROOT / "bench" / "results" / name).read_text(encoding="utf-8")
    return dict(json.loads(text))


def same(cell: str, value: float) -> bool:
    """Whether a cell is this value, rounded as the cell is."""
    plain = cell.strip("*").replace(",", "")
    places = len(plain.partition(".")[2])
    return float(plain) == pytest.approx(round(value, places))


def columns() -> list[dict[str, Any]]:
    """Batch 1 with two threads and with one, then batch 16."""
    runs = [results("compare_cpu.json"), results("compare_cpu_1_thread.json")]
    return [run["rsd"][batch] for batch in ("batch1", "batch16") for run in runs]


def test_reward_guided_speculation() -> None:
    rows = {row[0]: row[1:] for row in BENCHMARKS.table_after("### Reward-guided speculation")}
    assert set(rows) == {CEILING, *CONTENDERS}
    for number, column in enumerate(columns()):
        assert same(rows[CEILING][number], column["ceiling_seconds"])
        for shown, contender in CONTENDERS.items():
            taken = column["seconds"].get(contender)  # one contender takes one problem at a time
            assert taken is None or same(rows[shown][number], statistics.median(taken)), shown


def test_plain_decoding() -> None:
    decode = results("compare_cpu.json")["decode"]
    rows = {row[0]: row[1:] for row in BENCHMARKS.table_after("### Plain decoding")}
    for shown, contender in DECODERS.items():
        for cell, batch in zip(rows[shown], ("batch1", "batch8"), strict=True):
            value = decode[batch][contender]["tokens_per_second"]["median"]
            assert same(cell, value), (shown, cell, value)


def test_how_cost_grows() -> None:
    steps = results("scaling_cpu.json")["steps"]
    rows = {row[0]: row[1:] for row in BENCHMARKS.table_after("## How cost grows")}
    assert steps["values"][-1] == 60
    for cell, contender in zip(rows["the same at 60 steps"], steps["prm_tokens"], strict=True):
        assert same(cell, steps["prm_tokens"][contender][-1])
    timed = rows["seconds per answer at 60 steps, 2 threads"]
    for cell, contender in zip(timed, steps["seconds"], strict=True):
        assert same(cell, steps["seconds"][contender][-1])


def test_the_readme_repeats_them() -> None:
    full = {row[0]: row[1:] for row in BENCHMARKS.table_after("### Reward-guided speculation")}
    brief = {row[0]: row[1:] for row in README.table_after("(`python -m bench.compare`)")}
    for name in ("this engine, RSD", "this engine, target alone"):
        assert brief[name] == full[name]
    assert brief[f"{PAPER}, its fastest variant"] == full[CACHED]
    told = "bench.effect --threads 1`)"
    assert README.table_after(told) == BENCHMARKS.table_after(told)


def test_where_the_results_come_from() -> None:
    rows = {row[0].strip("`"): row[1:] for row in BENCHMARKS.table_after("Machine: Intel Xeon")}
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        found = results(path.name)
        _, date, commit = rows[f"bench/results/{path.name}"]
        assert (date, commit) == (found["date"], found["machine"]["commit"])


def test_a_wrong_figure_is_seen() -> None:
    assert same("20,430", 20430) and same("**1.01**", 1.013) and not same("1.02", 1.013)
