"""The demo family as models of transformers in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from rsd_engine.demo import checkpoint_dir


class _ValueHead(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)


class Qwen2ForPrmModel(Qwen2PreTrainedModel):
    """As the remote code of its family has it, without the forward, which is the engine's."""

    config_class = Qwen2Config

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = _ValueHead(config.hidden_size)
        self.post_init()


def load_writer(role: str) -> Any:
    """In fp32: transformers' own sums of bf16 are rounded at every op."""
    return AutoModelForCausalLM.from_pretrained(str(checkpoint_dir(role)), dtype=torch.float32)  # type: ignore[arg-type]


def load_prm() -> Any:
    return Qwen2ForPrmModel.from_pretrained(str(checkpoint_dir("prm")), dtype=torch.float32)
