"""Granite 3 (IBM, 2024): Llama with four factors (those of μP, Yang et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_engine.models.decoders.family import DecoderFamily, GgufRules, Scales


def _scales(raw: Mapping[str, Any]) -> Scales:
    return Scales(
        embedding=raw["embedding_multiplier"],
        attention=raw["attention_multiplier"],
        residual=raw["residual_multiplier"],
        logits=1 / raw["logits_scaling"],
    )


GRANITE = DecoderFamily(
    architecture="GraniteForCausalLM",
    gguf=GgufRules("granite", paired_heads=True),
    defaults={
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    attention_bias=True,
    mlp_bias=True,
    scales=_scales,
)
