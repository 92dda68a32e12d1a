"""Gemma 3, text only (Gemma Team, 2025): five layers with a sliding window for one without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rsd_engine.models.decoders.family import (
    FULL,
    SLIDING,
    DecoderFamily,
    Ropes,
    Scales,
    Windows,
    layer_kinds,
)
from rsd_engine.models.rope_config import RopeConfig


def _kinds(raw: Mapping[str, Any]) -> Sequence[str]:
    """By `layer_types`, or the last of every `sliding_window_pattern` layers sees everything."""
    pattern = raw["sliding_window_pattern"]
    layers = range(1, int(raw["num_hidden_layers"]) + 1)
    return layer_kinds(raw, [SLIDING if i % pattern else FULL for i in layers])


def _sliding_windows(raw: Mapping[str, Any]) -> Windows:
    window = raw["sliding_window"]
    sliding = None if window is None else int(window)
    return tuple(sliding if kind == SLIDING else None for kind in _kinds(raw))


def _ropes(raw: Mapping[str, Any]) -> Ropes:
    """Layers with a window turn faster, and are not scaled to longer contexts."""
    given = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    by_kind = {
        FULL: {"rope_theta": raw["rope_theta"], **(given.get(FULL) or {}), **scaling},
        SLIDING: {"rope_theta": raw["rope_local_base_freq"], **(given.get(SLIDING) or {})},
    }
    ropes = {
        kind: RopeConfig.from_dict({**raw, "rope_parameters": found})
        for kind, found in by_kind.items()
    }
    return tuple(ropes[kind] for kind in _kinds(raw))


def _scales(raw: Mapping[str, Any]) -> Scales:
    attention = raw["query_pre_attn_scalar"] ** -0.5
    return Scales(embedding=math.sqrt(int(raw["hidden_size"])), attention=attention)


GEMMA3 = DecoderFamily(
    architecture="Gemma3ForCausalLM",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
    refused=("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"),
    gelu=True,
    attention_bias=True,
    qk_norm=True,
    post_norms=True,
    norm_offset=1.0,
    context_is_scaled=True,
    sliding_windows=_sliding_windows,
    ropes=_ropes,
    scales=_scales,
)
