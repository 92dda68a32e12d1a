"""Qwen2 and Qwen2.5 (Yang et al., 2024), with biases of q, k and v; Qwen3 (Yang et al., 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_engine.models.decoders.family import (
    FULL,
    SLIDING,
    DecoderFamily,
    GgufRules,
    Windows,
    full_attention,
    layer_kinds,
)


def _sliding_windows(raw: Mapping[str, Any]) -> Windows:
    """If switched on: in the layers from `max_window_layers` on, or as `layer_types` says."""
    num_layers, window = int(raw["num_hidden_layers"]), raw["sliding_window"]
    if window is None or not raw.get("use_sliding_window", False):
        return full_attention(raw)
    full = min(int(raw["max_window_layers"]), num_layers)
    kinds = layer_kinds(raw, [FULL] * full + [SLIDING] * (num_layers - full))
    return tuple(int(window) if kind == SLIDING else None for kind in kinds)


QWEN2 = DecoderFamily(
    architecture="Qwen2ForCausalLM",
    gguf=GgufRules("qwen2"),
    defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    qkv_bias=True,
    sliding_windows=_sliding_windows,
)

QWEN3 = DecoderFamily(
    architecture="Qwen3ForCausalLM",
    gguf=GgufRules("qwen3"),
    defaults={**QWEN2.defaults, "head_dim": 128},
    attention_bias=True,
    qk_norm=True,
    sliding_windows=_sliding_windows,
)
