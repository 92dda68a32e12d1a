"""What one base architecture may say that its config.json does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Windows = tuple[int | None, ...]
"""For each layer the tokens that a row sees, itself included; None: all before it."""


def full_attention(raw: Mapping[str, Any]) -> Windows:
    """No sliding window in any layer, whatever the config says."""
    return (None,) * int(raw["num_hidden_layers"])


@dataclass(frozen=True)
class GgufRules:
    """How llama.cpp stores the architecture."""

    architecture: str  # `general.architecture` of the file
    # Whether the file names a window, where that tells two architectures apart; None: either way.
    sliding_window: bool | None = None
    # llama.cpp's rope pairs neighbouring dimensions of a head, transformers' its halves. True: q
    # and k are stored in the order of the former.
    paired_heads: bool = False


@dataclass(frozen=True)
class DecoderFamily:
    """A decoder of the Llama kind: pre-norm, rotary, grouped heads, SwiGLU."""

    architecture: str  # of the language model, in config.json
    gguf: GgufRules
    defaults: Mapping[str, Any] = field(default_factory=dict)  # as in transformers, of absent keys
    qkv_bias: bool = False  # q, k and v always have biases
    attention_bias: bool = False  # the config's switch of this name counts: q, k, v, o
    mlp_bias: bool = False  # the config's switch of this name counts: gate, up, down
    qk_norm: bool = False  # RMSNorm over each head of q and k before rope
    # Reads them off the config with `defaults` filled in.
    sliding_windows: Callable[[Mapping[str, Any]], Windows] = full_attention
