"""Both PRM heads on a transformers backbone with the head's formula applied by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.models.loader import load_language_model, load_reward_model
from rsd_kernels.cpu import ops as cpu_ops
from tests.models.checkpoints import PrmHeads, edit_config, make_model, save
from tests.models.driver import Driver

MakeHead = Callable[[int], dict[str, Tensor]]
Reward = Callable[[Tensor, dict[str, Tensor]], Tensor]
Head = tuple[str, MakeHead, Reward]
HEADS: list[Head] = [
    ("Qwen2ForPrmModel", PrmHeads.value, PrmHeads.value_reward),
    ("Qwen2ForProcessRewardModel", PrmHeads.two_class, PrmHeads.two_class_reward),
]
TOKENS = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38]


def save_prm(
    folder: Path, architecture: str, head: dict[str, Tensor], *, lm_head: bool = True
) -> Any:
    backbone = make_model("qwen2-untied")
    save(backbone, folder)
    edit_config(folder, architectures=[architecture])
    state = dict(backbone.state_dict()) | head
    if not lm_head:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    return backbone


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize(("architecture", "make_head", "reward"), HEADS)
def test_rewards(
    architecture: str, make_head: MakeHead, reward: Reward, lm_head: bool, tmp_path: Path
) -> None:
    head = make_head(32)
    backbone = save_prm(tmp_path, architecture, head, lm_head=lm_head)
    model = load_reward_model(tmp_path, max_rows=16)
    with torch.no_grad():
        hidden = backbone.model(torch.tensor([TOKENS])).last_hidden_state[0]
    wanted = reward(hidden, head)
    driver = Driver(model)
    ours = [driver.run((1, TOKENS[:6])), driver.run((1, TOKENS[6:7])), driver.run((1, TOKENS[7:]))]
    torch.testing.assert_close(torch.cat(ours), wanted[[5, 6, 12]], rtol=0, atol=1e-5)
    assert wanted.std() > 1e-3  # the head is not blind to what it reads


@pytest.mark.parametrize(("architecture", "make_head", "reward"), HEADS)
def test_sizes_count_the_head_and_no_lm_head(
    architecture: str, make_head: MakeHead, reward: Reward, tmp_path: Path
) -> None:
    head = make_head(32)
    backbone = save_prm(tmp_path, architecture, head)
    model = load_reward_model(tmp_path, max_rows=4)
    count = sum(p.numel() for p in backbone.model.parameters())
    count += sum(t.numel() for t in head.values())
    assert model.num_parameters == count
    assert model.weight_bytes == 4 * count


def test_a_single_fp32_row_does_not_widen_the_matrices(tmp_path: Path) -> None:
    """Value heads are often stored in fp32 beside a bf16 backbone."""
    head = PrmHeads.value(32)
    save_prm(tmp_path, "Qwen2ForPrmModel", head)
    path = tmp_path / "model.safetensors"
    wide = load_file(path)
    narrow = {n: t if n in head else t.bfloat16() for n, t in wide.items()}
    save_file(narrow, path)
    model = load_reward_model(tmp_path, max_rows=4)
    kept = "bfloat16" if cpu_ops.available() else "float32"
    assert model.decoder.weights.held_in == kept
    assert {tensor.dtype for tensor in model.head.own_tensors()} == {torch.float32}


def test_value_head_stays_fp32(tmp_path: Path) -> None:
    save_prm(tmp_path, "Qwen2ForPrmModel", PrmHeads.value(32))
    model = load_reward_model(tmp_path, max_rows=4, dtype="bfloat16")
    assert {tensor.dtype for tensor in model.head.own_tensors()} == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_language_model_is_no_reward_model(tmp_path: Path) -> None:
    save(make_model("qwen2-tied"), tmp_path)
    with pytest.raises(ValueError, match="Qwen2ForCausalLM.*Qwen2ForPrmModel"):
        load_reward_model(tmp_path, max_rows=4)


def test_reward_model_is_no_language_model(tmp_path: Path) -> None:
    save_prm(tmp_path, "Qwen2ForPrmModel", PrmHeads.value(32))
    with pytest.raises(ValueError, match="Qwen2ForPrmModel, not a language model; one of Gemma3"):
        load_language_model(tmp_path, max_rows=4)


def test_missing_head_is_named(tmp_path: Path) -> None:
    save_prm(tmp_path, "Qwen2ForProcessRewardModel", PrmHeads.value(32))
    with pytest.raises(ValueError, match=r"lacks score\.0\.bias, score\.0\.weight, score\.2\.bias"):
        load_reward_model(tmp_path, max_rows=4)
