"""A tiny reward model with random weights over a real tokenizer: decisions without a meaning.

Where two programs must decide alike, any reward serves that depends on every token that was read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2Model

_HIDDEN, _LAYERS, _CONTEXT = 64, 2, 4096


def write_stand_in_prm(folder: Path, tokenizer: Any, seed: int = 0) -> Path:
    """Writes a checkpoint in the format of Skywork-o1-Open-PRM; rewards lie around 0.5.

    Args:
        folder: made if it is not there.
        tokenizer: of the models that write, a transformers fast tokenizer.
        seed: of the weights.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=_HIDDEN, intermediate_size=2 * _HIDDEN,
        num_hidden_layers=_LAYERS, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=_CONTEXT, initializer_range=0.2, dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = {f"model.{name}": w for name, w in Qwen2Model(config).state_dict().items()}
        weights["v_head.summary.weight"] = torch.randn(1, _HIDDEN) * 2 / _HIDDEN**0.5
    weights["v_head.summary.bias"] = torch.zeros(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | {"architectures": ["Qwen2ForPrmModel"]}
    (folder / "config.json").write_text(json.dumps(written))
    tokenizer.save_pretrained(folder)
    return folder
