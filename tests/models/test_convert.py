"""What is done once to a checkpoint's tensors, so that a forward does not do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.convert import as_computed
from rsd_engine.models.loader import load_language_model
from tests.models.checkpoints import make_model, save
from tests.models.driver import Driver


def logits(folder: Path) -> Tensor:
    return Driver(load_language_model(folder, max_rows=8)).run((0, [1, 2, 3, 50, 60, 7]))


def converted(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The tensors of a checkpoint before and after."""
    checkpoint = open_checkpoint(folder)
    stored = dict(checkpoint.tensors())
    config = ModelConfig.from_dict(checkpoint.config())
    return stored, as_computed(stored, config, str(folder))


@pytest.mark.parametrize("name", ["llama3", "qwen3", "smollm3", "olmo2"])
def test_most_tensors_stay_as_they_are(name: str, tmp_path: Path) -> None:
    stored, found = converted(save(make_model(name), tmp_path))
    assert found.keys() == stored.keys()
    assert all(found[name] is stored[name] for name in stored)


def test_merged_weights_of_any_family(tmp_path: Path) -> None:
    """Phi-3 stores them so; other tools merge those of Llama."""
    folder = save(make_model("llama2"), tmp_path)
    wanted = logits(folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(3):
        for merged, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            block = f"model.layers.{layer}.{merged.split('.')[0]}"
            whole = [weights.pop(f"{block}.{part}_proj.weight") for part in parts]
            weights[f"model.layers.{layer}.{merged}_proj.weight"] = torch.cat(whole)
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(logits(folder), wanted)


@pytest.mark.parametrize(
    ("merged", "rows", "wanted"),
    [("self_attn.qkv_proj", 95, 96), ("mlp.gate_up_proj", 98, 96)],
)
def test_merged_weights_of_another_size(
    merged: str, rows: int, wanted: int, tmp_path: Path
) -> None:
    folder = save(make_model("phi3"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = f"model.layers.1.{merged}.weight"
    assert weights[name].shape == (wanted, 32)
    save_file(weights | {name: torch.zeros(rows, 32)}, folder / "model.safetensors")
    message = rf"{name} in model\.safetensors has shape \[{rows}, 32\].* must have {wanted} rows"
    with pytest.raises(ValueError, match=message):
        load_language_model(folder, max_rows=8)


def test_norms_are_rounded_once(tmp_path: Path) -> None:
    """1 + w needs more bits than bfloat16 has, so it is made in fp32."""
    model = make_model("gemma3").bfloat16()
    weights = dict(model.state_dict())
    _, found = converted(save(model, tmp_path))
    for name, tensor in weights.items():
        if name.endswith("norm.weight"):
            assert torch.equal(found[name].read(), 1 + tensor.float())
            assert found[name].dtype == torch.float32
        elif name != "lm_head.weight":
            assert torch.equal(found[name].read(), tensor)


def test_logits_scale_goes_into_the_final_norm_alone(tmp_path: Path) -> None:
    model = make_model("granite")
    weights: dict[str, Any] = dict(model.state_dict())
    stored, found = converted(save(model, tmp_path))
    changed = [name for name in stored if found[name] is not stored[name]]
    assert changed == ["model.norm.weight"]
    torch.testing.assert_close(found[changed[0]].read() * 3.0, weights[changed[0]])


def test_rows_move_where_a_part_of_each_head_is_rotated(tmp_path: Path) -> None:
    """Of heads of 8, 6 dimensions: the kernels pair i with i + 4, the model with i + 3."""
    model = make_model("phi4-mini-short")
    qkv = model.state_dict()["model.layers.0.self_attn.qkv_proj.weight"]
    q, k, v = qkv.split((32, 16, 16))
    order = torch.tensor([0, 1, 2, 6, 3, 4, 5, 7])
    _, found = converted(save(model, tmp_path))
    for name, part in (("q", q), ("k", k)):
        wanted = part.view(-1, 8, 32)[:, order].reshape(part.shape)
        assert torch.equal(found[f"model.layers.0.self_attn.{name}_proj.weight"].read(), wanted)
    assert torch.equal(found["model.layers.0.self_attn.v_proj.weight"].read(), v)
