"""What in a model's config.json changes the maths, read once and checked.

Anything there that would change the maths and is not known is an error: a model that loads is
computed as its authors meant it. What the config does not say is in `models.decoders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rsd_engine.memory.page_pool import KVShape
from rsd_engine.models.checkpoints.quantized import check_quantization
from rsd_engine.models.decoders.family import DecoderFamily, Ropes, Windows
from rsd_engine.models.registry import decoder_families, reward_architectures
from rsd_engine.models.rope_config import NO_ROPE
from rsd_engine.models.schemas import KindSchema, ModelSchema

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and switches of one decoder; see `DecoderFamily`."""

    architecture: str
    is_reward_model: bool
    vocab_size: int  # rows of the embedding; may be padded past the tokenizer's size
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int  # of the context, scaled as its rope is
    ropes: Ropes
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over each head of q and k before rope
    qk_norm_whole: bool  # if so, over all heads of q together, and of k
    pre_norms: bool  # RMSNorm of what a block reads
    post_norms: bool  # RMSNorm of what a block adds
    norm_offset: float  # the checkpoint's norm weights lack this
    gelu: bool  # the gate's activation is GELU in its tanh form, not SiLU
    embedding_scale: float
    attention_scale: float
    logits_scale: float
    sliding_windows: Windows
    dtype: torch.dtype  # of the checkpoint

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads a config.json as written by transformers 4 or 5.

        Raises:
            ValueError: a field is not what `ModelSchema` allows, the architecture, activation or
                rope type is not known, the weights are quantised in an unknown format, or sizes do
                not fit one another.
        """
        architecture, family = _architecture(KindSchema.check(raw, "config.json"))
        raw = {**family.defaults, **ModelSchema.read(raw, "config.json")}
        raw = _with_one_rope(raw)
        _check_known(raw, family)
        num_q_heads = raw["num_attention_heads"]
        num_kv_heads = raw.get("num_key_value_heads") or num_q_heads
        head_dim = raw.get("head_dim") or raw["hidden_size"] // num_q_heads
        if num_q_heads % num_kv_heads:
            raise ValueError(
                f"num_key_value_heads={num_kv_heads} must divide num_attention_heads={num_q_heads}"
            )
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head_dim={head_dim} must be even and at least 2")
        ropes, scales = family.ropes(raw), family.scales(raw)
        _check_rotation(ropes, head_dim, partial=family.partial_rotary)
        attention_bias = family.attention_bias and bool(raw.get("attention_bias", False))
        return cls(
            architecture=architecture,
            is_reward_model=architecture not in decoder_families(),
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            # The residual stream is kept divided by `scales.residual`, so that a block's output is
            # added as it is: RMSNorm sees nothing of it but for eps.
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)) / scales.residual**2,
            max_position_embeddings=_context(raw, ropes, family),
            ropes=ropes,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family.qkv_bias or attention_bias,
            o_bias=attention_bias,
            mlp_bias=family.mlp_bias and bool(raw.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            qk_norm_whole=family.qk_norm_whole,
            pre_norms=family.pre_norms,
            post_norms=family.post_norms,
            norm_offset=family.norm_offset,
            gelu=family.gelu,
            embedding_scale=scales.embedding / scales.residual,
            attention_scale=scales.attention or head_dim**-0.5,
            logits_scale=scales.logits,
            sliding_windows=family.sliding_windows(raw),
            dtype=_dtype(raw),
        )

    @property
    def q_width(self) -> int:
        return self.num_q_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def qk_norm_widths(self) -> tuple[int, int]:
        """Weights in the norm of q and in that of k."""
        whole = (self.q_width, self.kv_width)
        return whole if self.qk_norm_whole else (self.head_dim, self.head_dim)

    @property
    def num_parameters(self) -> int:
        """Weights of the language model, a tied embedding once; a PRM's without its head."""
        head = 0 if self.tie_word_embeddings or self.is_reward_model else 1
        embeddings = (1 + head) * self.vocab_size * self.hidden_size
        return embeddings + self.num_layers * self._layer_parameters() + self.hidden_size

    def _layer_parameters(self) -> int:
        hidden, inter, qkv = self.hidden_size, self.intermediate_size, self.q_width
        qkv += 2 * self.kv_width
        products = hidden * (qkv + self.q_width + 3 * inter)
        biases = self.qkv_bias * qkv + self.o_bias * hidden + self.mlp_bias * (2 * inter + hidden)
        norms = 2 * hidden * (self.pre_norms + self.post_norms)
        return products + biases + norms + self.qk_norm * sum(self.qk_norm_widths)

    def kv_shape(self, dtype: torch.dtype) -> KVShape:
        """What one token of this model needs in the page pool."""
        return KVShape(self.num_layers, self.num_kv_heads, self.head_dim, dtype)


def _architecture(kind: KindSchema) -> tuple[str, DecoderFamily]:
    """The architecture in config.json, and that of its decoder; without one, model_type decides."""
    allowed = decoder_families() | reward_architectures()
    found = kind.architectures or _named_by_type(kind.model_type)
    if len(found) != 1 or found[0] not in allowed:
        raise ValueError(f"architectures={found} is not supported; one of {', '.join(allowed)}")
    return found[0], allowed[found[0]]


def _named_by_type(model_type: str | None) -> list[str]:
    """The language model that transformers loads for a model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type or "")
    return [] if name is None else [name]


def _with_one_rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where both spellings of its rope are given, `rope_scaling` counts, as in transformers."""
    old, new = raw.get("rope_scaling"), raw.get("rope_parameters")
    if not old or not new or any(isinstance(value, dict) for value in new.values()):
        return raw
    return {**raw, "rope_parameters": {"rope_theta": new.get("rope_theta"), **old}}


def _context(raw: Mapping[str, Any], ropes: Ropes, family: DecoderFamily) -> int:
    given = int(raw["max_position_embeddings"])
    if family.context_is_scaled:
        return given
    return max((rope.context(given) for rope in set(ropes) - {NO_ROPE}), default=given)


def _check_known(raw: Mapping[str, Any], family: DecoderFamily) -> None:
    key, allowed = "hidden_act", ["silu", "swish"]
    if family.gelu:
        key, allowed = "hidden_activation", ["gelu_pytorch_tanh"]
    if raw.get(key, allowed[0]) not in allowed:
        raise ValueError(f"{key}={raw[key]!r} is not supported; only {allowed[0]!r}")
    for name in family.refused:
        if raw.get(name):
            raise ValueError(f"{name}={raw[name]} is not supported; it must be absent")
    check_quantization(raw.get("quantization_config"))


def _check_rotation(ropes: Ropes, head_dim: int, *, partial: bool) -> None:
    for rope in set(ropes):
        if rope.rotated != 1.0 and not partial:
            raise ValueError(f"partial_rotary_factor={rope.rotated} is not supported; only 1")
        rope.rotated_dims(head_dim)


def _dtype(raw: Mapping[str, Any]) -> torch.dtype:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not supported; one of {', '.join(DTYPES)}")
    return DTYPES[name]
