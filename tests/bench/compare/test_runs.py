"""Both benchmarks on tiny random models: the shape of what they print, and the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bench.compare import decode, effect
from bench.lib.timing import Mismatch
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


def test_effect_counts_what_the_models_wrote(models: TinyModels) -> None:
    problems = effect.generate(1, "test", 2)
    sources = effect.Models(**models.sources())
    runs = effect.solve(sources, problems, [0.7], slots=2, seed=1)
    assert set(runs) == {"draft", "target", "rsd 0.7"}
    for name in ("draft", "target"):
        tokens = sum(len(c.token_ids) for c in runs[name].completions)
        assert getattr(runs[name].metrics, name).tokens_generated == tokens
    assert effect.flops_ratio(runs["target"], runs["target"]) == {"generated": 1.0, "all": 1.0}


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
