"""The commands of docs/real_pair.md run as they stand there, on GGUF files of two tiny models."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

from transformers import LlamaConfig, LlamaForCausalLM

from rsd_engine.evaluate.record import Record, read_records
from tests.cli.conftest import Rsd, write_jsonl
from tests.models.gguf_files import find_smollm2, write_gguf
from tests.steps.toy_tokenizers import smollm_like

PAGE = Path(__file__).resolve().parents[3] / "docs" / "real_pair.md"
RUNS = [f"{name}-{scorer}" for scorer in ("judge", "confidence") for name in ("gsm8k", "math500")]
GSM8K = [  # in the form of its file, as of MATH-500's below
    {"question": f"Tom has {n} pens and buys 2. How many?", "answer": f"He has.\n#### {n + 2}"}
    for n in range(1198, 1201)
]
GSM8K[0]["answer"] = "1198 + 2 = <<1198+2=1200>>1,200 pens.\n#### 1,200"
MATH500 = [
    {
        "problem": f"What is half of ${n}$?",
        "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$.",
        "answer": f"\\frac{{{n}}}{{2}}",
        "subject": "Algebra",
        "level": 1,
        "unique_id": f"test/algebra/{n}.json",
    }
    for n in (3, 5, 7)
]


def commands(**values: str) -> list[list[str]]:
    """Those of the page that begin with rsd, with these values of its variables."""
    lines = PAGE.read_text().replace("\\\n", " ").splitlines()
    found = [shlex.split(line)[1:] for line in lines if line.startswith("rsd ")]
    return [[values.get(word.removeprefix("$"), word) for word in words] for words in found]


def tiny_gguf(path: Path, hidden: int, seed: int) -> Path:
    tokenizer = smollm_like()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, intermediate_size=2 * hidden,
        num_hidden_layers=2, num_attention_heads=hidden // 8, num_key_value_heads=1,
        max_position_embeddings=1024, initializer_range=0.4,
    )  # fmt: skip
    return write_gguf(path, LlamaForCausalLM(config), tokenizer=tokenizer)


def run_page(rsd: Rsd, draft: Path, target: Path, *limits: str) -> dict[str, list[Record]]:
    """Runs all commands of the page; returns the records of each run."""
    write_jsonl(Path("gsm8k.jsonl"), GSM8K)
    write_jsonl(Path("math500.jsonl"), MATH500)
    for command in commands(DRAFT=str(draft), TARGET=str(target)):
        given = [*command, *limits] if command[0] == "eval" else command
        result = rsd(*given)
        assert result.exit_code == 0, (command, result.stderr)
    return {name: read_records(Path("results", name, "results.jsonl").read_text()) for name in RUNS}


def texts(records: list[Record]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        found[record.label].append(record.text)
    return found


def rewards(records: list[Record]) -> list[Any]:
    return [
        step.reward if step.rejected is None else step.rejected.reward
        for record in records
        for step in record.steps
        if record.label.startswith(("judge", "rsd"))
    ]


def test_the_path_on_tiny_models(rsd: Rsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draft = tiny_gguf(tmp_path / "draft.gguf", hidden=16, seed=0)
    target = tiny_gguf(tmp_path / "target.gguf", hidden=32, seed=1)
    found = run_page(rsd, draft, target, "--max-tokens=24", "--max-step-tokens=8")
    for name, records in found.items():
        rows: list[Any] = MATH500 if name.startswith("math") else GSM8K
        tried = texts(records)
        assert all(len(answers) == len(rows) for answers in tried.values())
        assert tried["target"] != tried["draft"]
        given = rewards(records)
        assert given and all(reward is not None and 0 < reward < 1 for reward in given)
        assert all(record.error is None for record in records)
    judged = found["gsm8k-judge"]
    assert list(texts(judged)) == ["target", "draft", "speculative", "judge 0.5", "judge 0.6"]
    assert texts(judged)["speculative"] == texts(judged)["target"]
    assert [r.question.answer for r in judged[:3]] == ["1200", "1201", "1202"]
    assert [r.question.answer for r in found["math500-judge"][:3]] == [
        rf"\frac{{{n}}}{{2}}" for n in (3, 5, 7)
    ]
    page = Path("gsm8k.html").read_text()
    assert json.dumps(GSM8K[1]["question"]) in page and "gsm8k-confidence" in page


@pytest.mark.slow  # `test_the_path_on_tiny_models` is the fast one
@pytest.mark.timeout(900)
def test_the_path_on_smollm2(rsd: Rsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft and target are the same model, so all methods write the same."""
    monkeypatch.chdir(tmp_path)
    model = find_smollm2()
    for name, records in run_page(rsd, model, model, "--max-tokens=48").items():
        tried = texts(records)
        assert all(answers == tried["target"] for answers in tried.values()), name
        assert all(text.strip() for text in tried["target"])
        assert len(set(rewards(records))) > 3
