"""Phi-3 and Phi-4-mini (Microsoft, 2024 and 2025), rotated by LongRoPE (Ding et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_engine.models.decoders.family import DecoderFamily, Ropes, one_rope, window_in_every_layer


def _ropes(raw: Mapping[str, Any]) -> Ropes:
    """LongRoPE under any of its names; its original length stands outside the rope part."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if scaling.get("rope_type", scaling.get("type")) in ("su", "yarn"):
        scaling["rope_type"] = "longrope"
    scaling["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    return one_rope({**raw, "rope_parameters": scaling})


PHI3 = DecoderFamily(
    architecture="Phi3ForCausalLM",
    defaults={
        "rms_norm_eps": 1e-5,
        "original_max_position_embeddings": 4096,
        "sliding_window": None,
    },
    partial_rotary=True,
    sliding_windows=window_in_every_layer,
    ropes=_ropes,
)
