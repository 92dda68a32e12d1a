"""Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., 2024); Mistral (Jiang et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_engine.models.decoders.family import DecoderFamily, GgufRules, Windows, full_attention

LLAMA = DecoderFamily(
    architecture="LlamaForCausalLM",
    gguf=GgufRules("llama", sliding_window=False, paired_heads=True),
    attention_bias=True,
    mlp_bias=True,
)


def _window_in_every_layer(raw: Mapping[str, Any]) -> Windows:
    window = raw["sliding_window"]  # null in the releases that have none
    return full_attention(raw) if window is None else (int(window),) * len(full_attention(raw))


MISTRAL = DecoderFamily(
    architecture="MistralForCausalLM",
    gguf=GgufRules("llama", sliding_window=True, paired_heads=True),
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    sliding_windows=_window_in_every_layer,
)
