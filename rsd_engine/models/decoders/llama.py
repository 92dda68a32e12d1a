"""Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., 2024); Mistral (Jiang et al., 2023)."""

from __future__ import annotations

from rsd_engine.models.decoders.family import DecoderFamily, GgufRules, window_in_every_layer

LLAMA = DecoderFamily(
    architecture="LlamaForCausalLM",
    gguf=GgufRules("llama", sliding_window=False, paired_heads=True),
    attention_bias=True,
    mlp_bias=True,
)

MISTRAL = DecoderFamily(
    architecture="MistralForCausalLM",
    gguf=GgufRules("llama", sliding_window=True, paired_heads=True),
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    sliding_windows=window_in_every_layer,
)
