"""A LoRA adapter's folder loads as its base with the adapter merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.loader import load_language_model
from tests.models.checkpoints import make_model, save
from tests.models.driver import Driver

TOKENS = [1, 2, 3, 50, 60, 7]
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
RANK, ALPHA = 4, 10


def logits(folder: Path) -> Tensor:
    return Driver(load_language_model(folder, max_rows=8)).run((0, TOKENS))


def make_adapter(
    folder: Path, base: Path, *, strength: float = 0.1, **changes: Any
) -> dict[str, Tensor]:
    """An adapter as peft saves it; returns the products B A by the names of the base's weights.

    `strength` is the scale of B.
    """
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "target_modules": [name.split(".")[1] for name in TARGETS],
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
        "rank_pattern": {},
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    factors, products = {}, {}
    for name in sorted(weights):
        stem = name.removesuffix(".weight")
        if stem.endswith(TARGETS):
            outputs, inputs = weights[name].shape
            a = torch.randn(RANK, inputs, generator=generator) * 0.1
            b = torch.randn(outputs, RANK, generator=generator) * strength
            factors[f"base_model.model.{stem}.lora_A.weight"] = a
            factors[f"base_model.model.{stem}.lora_B.weight"] = b
            products[name] = b @ a
    save_file(factors, folder / "adapter_model.safetensors")
    return products


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(make_model("qwen2-untied"), tmp_path / "base")


@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / 2)])
@pytest.mark.parametrize("as_bin", [False, True])
def test_merged(base: Path, tmp_path: Path, rslora: bool, scale: float, as_bin: bool) -> None:
    products = make_adapter(tmp_path / "adapter", base, use_rslora=rslora)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    if as_bin:
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    merged = load_file(base / "model.safetensors")
    for name, product in products.items():
        merged[name] = merged[name] + scale * product
    whole = save(make_model("qwen2-untied"), tmp_path / "whole")
    save_file(merged, whole / "model.safetensors")
    found = logits(tmp_path / "adapter")
    torch.testing.assert_close(found, logits(whole), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, logits(base), atol=1e-2)


def test_the_base_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", base)
    wanted = logits(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert torch.equal(logits(tmp_path / "adapter"), wanted)


def test_what_the_adapter_lacks_is_the_base_s(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", base)
    (base / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    checkpoint = open_checkpoint(tmp_path / "adapter")
    assert checkpoint.source == str(tmp_path / "adapter")
    assert checkpoint.generation_config() == {"eos_token_id": [5, 6]}
    assert checkpoint.config()["vocab_size"] == 61


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "", None, 3, "../adapter", "a\0b"])
def test_a_base_that_is_no_folder(base: Path, tmp_path: Path, name: object) -> None:
    make_adapter(tmp_path / "adapter", base, base_model_name_or_path=name)
    with pytest.raises(ValueError, match="put the path of the base model's folder there"):
        logits(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; only LORA"),
        ({"use_dora": True}, r"use_dora=True is not supported; merge the adapter \(peft"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern=.* is not supported"),
        ({"r": 0}, "r=0 must be from 1"),
        ({"r": 8}, r"lora_A \[4, .* do not fit r=8 and a weight of"),
        ({"lora_alpha": None}, "lora_alpha=None must be a number"),
    ],
)
def test_other_adapters_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    make_adapter(tmp_path / "adapter", base, **changes)
    with pytest.raises(ValueError, match=said) as caught:
        logits(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "only lora_A and lora_B of lin"),
        ("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", "which its base .* does not"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "only one of lora_A and"),
        ("base_model.model.lm_head.weight", r"holds base_model\.model\.lm_head\.weight; only"),
    ],
)
def test_other_tensors_are_refused(base: Path, tmp_path: Path, name: str, said: str) -> None:
    make_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(RANK, 32)}, path)
    with pytest.raises(ValueError, match=said):
        logits(tmp_path / "adapter")


def test_an_unmerged_model_is_told_apart(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    renamed = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
    factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    save_file(renamed | {factor: torch.zeros(RANK, 32)}, base / "model.safetensors")
    with pytest.raises(ValueError, match="hold a LoRA adapter beside the weights"):
        logits(base)
