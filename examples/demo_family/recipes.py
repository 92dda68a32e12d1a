"""The shapes of the three demo models, and their learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2Model

from examples.demo_family.tokenizer import MAX_LENGTH, SPECIAL, VOCAB_SIZE
from rsd_engine.demo import ModelRole


@dataclass(frozen=True)
class Shape:
    """The size of one decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int


SHAPES: dict[ModelRole, Shape] = {
    "draft": Shape(hidden=64, layers=3, heads=2, kv_heads=2, mlp=160),
    "target": Shape(hidden=256, layers=6, heads=4, kv_heads=2, mlp=704),
    "prm": Shape(hidden=128, layers=4, heads=4, kv_heads=2, mlp=160),
}
LEARNING_RATE: dict[ModelRole, float] = {"draft": 4e-3, "target": 2e-3, "prm": 3e-3}


def _common(role: ModelRole, attention: str) -> dict[str, Any]:
    shape = SHAPES[role]
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "pad_token_id": SPECIAL.index("<|pad|>"),
        "bos_token_id": SPECIAL.index("<|bos|>"),
        "eos_token_id": SPECIAL.index("<|eos|>"),
        "attn_implementation": attention,
    }


def language_model(role: ModelRole, attention: str = "eager") -> LlamaForCausalLM:
    """A new draft or target, untrained."""
    return LlamaForCausalLM(LlamaConfig(**_common(role, attention)))


class RewardModel(nn.Module):
    """A Qwen2 backbone with the value head of Skywork-o1-Open-PRM.

    In training its embedding also serves as a language-model head: to learn what the next step
    should be is the quickest way to learn whether a step is right.
    """

    def __init__(self, attention: str = "eager") -> None:
        super().__init__()
        self.config = Qwen2Config(**_common("prm", attention))
        self.model = Qwen2Model(self.config)
        summary = nn.Linear(self.config.hidden_size, 1)
        nn.init.zeros_(summary.weight)
        nn.init.zeros_(summary.bias)
        self.v_head = nn.ModuleDict({"summary": summary})

    def hidden(
        self,
        input_ids: torch.Tensor,  # [rows, length]
        positions: torch.Tensor | None = None,  # [rows, length]; None: 0, 1, 2 and so on
        mask: torch.Tensor | None = None,  # [rows, 1, length, length]; None: causal
    ) -> torch.Tensor:
        """The hidden states after the final norm, [rows, length, hidden]."""
        output: torch.Tensor = self.model(
            input_ids=input_ids, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The reward before the sigmoid, one per hidden state."""
        values: torch.Tensor = self.v_head["summary"](hidden)
        return values.squeeze(-1)

    def words(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits, for the auxiliary loss."""
        return hidden @ self.model.embed_tokens.weight.T


def count_parameters(module: nn.Module) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
