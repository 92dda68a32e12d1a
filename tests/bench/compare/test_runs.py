"""Both benchmarks on tiny random models: the shape of what they print, and the gate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bench.compare import decode, effect
from bench.lib.timing import Mismatch
from rsd_engine import Engine, Metrics, SamplingParams, Threshold
from rsd_engine.demo.problems import check_answer
from rsd_engine.evaluate.summary import summarise
from tests.tiny_models import TinyModels, make_tiny_models, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return make_tiny_models(tmp_path_factory.mktemp("bench-models"))


@pytest.fixture(scope="module")
def target(models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny target without its likely padded ids, which transformers would write."""
    folder = tmp_path_factory.mktemp("bench-target") / "target"
    shutil.copytree(models.target, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][tiny_tokenizer().get_vocab_size() :, 0] = -50.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_effect(
    models: TinyModels, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "MAX_TOKENS", 24)
    sources = [part for name, path in models.sources().items() for part in (f"--{name}", str(path))]
    effect.main(
        ["--problems", "3", "--seed", "7", "--slots", "2", "--threads", "1", "--thresholds", "0.4",
         *sources]
    )  # fmt: skip
    found = last_json(capsys)
    for name in ("accuracy", "seconds"):
        assert set(found[name]) == {"draft", "target", "rsd"}
    assert all(0 <= value <= 1 for value in found["accuracy"].values())
    assert all(value > 0 for value in found["seconds"].values())
    assert set(found["flops_ratio"]) == {"generated", "all"}
    assert all(value > 0 for value in found["flops_ratio"].values())
    assert 0 <= found["acceptance"] <= 1
    assert found["prm_auc"] is None or 0 <= found["prm_auc"] <= 1
    assert (found["problems"], found["seed"]) == (3, 7)
    assert set(found["thresholds"]) == {"0.4", "0.7"}


def test_effect_asks_what_rsd_eval_asks(models: TinyModels) -> None:
    """An engine that is asked by itself writes the same, and has the same counts."""
    problems = effect.generate(1, "test", 2)
    records = effect.solve(effect.Models(**models.sources()), problems, [0.7], slots=2)
    assert [record.label for record in records[::2]] == ["draft", "target", "rsd 0.7"]
    rows = summarise(records)
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    greedy = SamplingParams(temperature=0.0, max_tokens=effect.MAX_TOKENS)
    asked = [replace(greedy, mode="draft"), replace(greedy, mode="target"), greedy]
    with Engine(**models.sources(), max_num_seqs=2, policy=Threshold(0.7)) as engine:
        for params, row in zip(asked, rows, strict=True):
            results = engine.chat(chats, params, use_tqdm=False)
            texts = [result.outputs[0].text for result in results]
            assert texts == [record.text for record in records if record.method == row.method]
            right = [check_answer(p, text) for p, text in zip(problems, texts, strict=True)]
            assert row.accuracy == sum(right) / len(problems)
            metrics = sum((result.metrics for result in results), start=Metrics())
            assert row.counts.flops_generated == metrics.flops.generated
            assert row.counts.target_tokens == metrics.target.tokens_generated
    assert effect.flops_ratio(rows[1]) == {"generated": 1.0, "all": 1.0}


def test_effect_needs_a_problem() -> None:
    with pytest.raises(SystemExit):
        effect.main(["--problems", "0"])


def decode_tiny(target: Path, tokens: int) -> None:
    decode.main(
        ["--model", str(target), "--threads", "1", "--tokens", str(tokens), "--runs", "2",
         "--batch", "1", "3"]
    )  # fmt: skip


def test_decode(
    target: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "QUESTION", "Add {number} and {number}.")
    decode_tiny(target, tokens=8)
    found = last_json(capsys)
    assert found["new_tokens"] == 8
    for size in (1, 3):
        got = found[f"batch{size}"]
        assert found[f"ratio_batch{size}"] == got["ratio"] > 0
        assert got["ceiling_tokens_per_second"] > 0
        for name in ("ours", "transformers"):
            rate = got[name]["tokens_per_second"]
            assert 0 < rate["min"] <= rate["median"] <= rate["max"]
            assert len(got[name]["seconds"]) == 2


def test_decode_stops_where_the_tokens_differ(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "QUESTION", "Add {number}.")
    monkeypatch.setattr(
        decode, "write_with_generate", lambda model, batch, n: [[0] * n for _ in batch]
    )
    monkeypatch.setattr(decode, "measure", lambda *_: pytest.fail("timed in spite of the gate"))
    with pytest.raises(Mismatch, match="batch 1, 4 greedy tokens: sequence 0 differs at token 0"):
        decode_tiny(target, tokens=4)


def test_checkpoint_folder_takes_what_is_there(tmp_path: Path) -> None:
    assert decode.checkpoint_folder(tmp_path) == tmp_path
    with pytest.raises(ValueError, match=r"must be a folder or a \.gguf file"):
        decode.checkpoint_folder(tmp_path / "nothing")
