"""What one base architecture may say that its config.json does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsd_engine.models.rope_config import RopeConfig

FULL, SLIDING = "full_attention", "sliding_attention"  # the kinds in `layer_types`

Windows = tuple[int | None, ...]
"""For each layer the tokens that a row sees, itself included; None: all before it."""

Ropes = tuple[RopeConfig, ...]
"""For each layer how it rotates q and k."""


def full_attention(raw: Mapping[str, Any]) -> Windows:
    """No sliding window in any layer, whatever the config says."""
    return (None,) * int(raw["num_hidden_layers"])


def window_in_every_layer(raw: Mapping[str, Any]) -> Windows:
    """That of `sliding_window`, which is null in releases that have none."""
    window = raw["sliding_window"]
    return full_attention(raw) if window is None else (int(window),) * len(full_attention(raw))


def layer_kinds(raw: Mapping[str, Any], otherwise: Sequence[str]) -> Sequence[str]:
    """`layer_types` of the config, one of `FULL` and `SLIDING` a layer; `otherwise` if absent.

    Raises:
        ValueError: there are more or fewer than layers, or a kind is not known.
    """
    kinds = raw.get("layer_types")
    if kinds is None:
        return otherwise
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise ValueError(f"layer_types {unknown} are not supported; {FULL} or {SLIDING}")
    if len(kinds) != int(raw["num_hidden_layers"]):
        raise ValueError(
            f"layer_types has {len(kinds)} entries; "
            f"it must have num_hidden_layers={raw['num_hidden_layers']}"
        )
    return list(kinds)


def one_rope(raw: Mapping[str, Any]) -> Ropes:
    """The same rotation in every layer."""
    return (RopeConfig.from_dict(raw),) * int(raw["num_hidden_layers"])


@dataclass(frozen=True)
class Scales:
    """Factors in a forward; those of Llama by default."""

    embedding: float = 1.0  # of the rows of the embedding
    attention: float | None = None  # of the scores; None: head_dim ** -0.5
    residual: float = 1.0  # of what a block adds to the residual stream
    logits: float = 1.0


def no_scales(raw: Mapping[str, Any]) -> Scales:
    """Those of Llama, whatever the config says."""
    del raw
    return Scales()


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
    """A decoder of the Llama kind: RMSNorm, rotary, grouped heads, gated MLP."""

    architecture: str  # of the language model, in config.json
    gguf: GgufRules | None = None  # None: its GGUF files are not supported
    defaults: Mapping[str, Any] = field(default_factory=dict)  # as in transformers, of absent keys
    refused: tuple[str, ...] = ()  # keys of the config that must be absent, null or false
    gelu: bool = False  # the gate's activation is GELU in its tanh form, not SiLU
    qkv_bias: bool = False  # q, k and v always have biases
    attention_bias: bool = False  # the config's switch of this name counts: q, k, v, o
    mlp_bias: bool = False  # the config's switch of this name counts: gate, up, down
    qk_norm: bool = False  # RMSNorm over each head of q and k before rope
    qk_norm_whole: bool = False  # if so, over all heads of q together, and of k
    pre_norms: bool = True  # RMSNorm of what a block reads
    post_norms: bool = False  # RMSNorm of what a block adds
    norm_offset: float = 0.0  # the checkpoint's norm weights lack this
    # max_position_embeddings is that of the context after linear or yarn scaling.
    context_is_scaled: bool = False
    partial_rotary: bool = False  # the config may say that a part of each head is rotated
    # These read the config with `defaults` filled in.
    sliding_windows: Callable[[Mapping[str, Any]], Windows] = full_attention
    ropes: Callable[[Mapping[str, Any]], Ropes] = one_rope
    scales: Callable[[Mapping[str, Any]], Scales] = no_scales
