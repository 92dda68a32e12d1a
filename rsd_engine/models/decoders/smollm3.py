"""SmolLM3 (Hugging Face, 2025): every fourth layer rotates nothing (NoPE, Yang et al., 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_engine.models.decoders.family import (
    FULL,
    SLIDING,
    DecoderFamily,
    GgufRules,
    Ropes,
    Windows,
    full_attention,
    layer_kinds,
)
from rsd_engine.models.rope_config import NO_ROPE, RopeConfig


def _rotates(raw: Mapping[str, Any]) -> list[bool]:
    """A layer: whether it rotates q and k, as `no_rope_layers` says: 1 where it does.

    Raises:
        ValueError: there are fewer of them than layers.
    """
    num_layers, listed = int(raw["num_hidden_layers"]), raw.get("no_rope_layers")
    if listed is None:
        interval = raw["no_rope_layer_interval"]
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    if len(listed) < num_layers:
        raise ValueError(
            f"no_rope_layers has {len(listed)} entries; "
            f"it must have num_hidden_layers={num_layers} at least"
        )
    return [bool(entry) for entry in listed[:num_layers]]


def _ropes(raw: Mapping[str, Any]) -> Ropes:
    rope = RopeConfig.from_dict(raw)
    return tuple(rope if rotates else NO_ROPE for rotates in _rotates(raw))


def _sliding_windows(raw: Mapping[str, Any]) -> Windows:
    """If switched on: in the layers that do not rotate, or as `layer_types` says."""
    window = raw.get("sliding_window")
    if window is None or not raw.get("use_sliding_window", False):
        return full_attention(raw)
    kinds = layer_kinds(raw, [FULL if rotates else SLIDING for rotates in _rotates(raw)])
    return tuple(int(window) if kind == SLIDING else None for kind in kinds)


SMOLLM3 = DecoderFamily(
    architecture="SmolLM3ForCausalLM",
    gguf=GgufRules("smollm3", paired_heads=True),
    defaults={
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
    },
    attention_bias=True,
    mlp_bias=True,
    sliding_windows=_sliding_windows,
    ropes=_ropes,
)
