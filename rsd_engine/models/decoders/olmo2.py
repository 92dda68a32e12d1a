"""OLMo 2 (OLMo Team, 2024): norms of what a block adds, and of all heads of q and k together."""

from __future__ import annotations

from rsd_engine.models.decoders.family import DecoderFamily, GgufRules

OLMO2 = DecoderFamily(
    architecture="Olmo2ForCausalLM",
    gguf=GgufRules("olmo2"),
    defaults={"rms_norm_eps": 1e-5},
    attention_bias=True,
    qk_norm=True,
    qk_norm_whole=True,
    pre_norms=False,
    post_norms=True,
)
