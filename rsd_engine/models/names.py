"""Names of a checkpoint's tensors as transformers writes them, whatever a wrapper put before them.

Wrappers prefix the names of what they wrap (`module.`, `_orig_mod.`, `pretrained_model.`), and a
base model saved alone lacks `model.`. Where all layers agree, the prefix is exchanged for `model.`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from rsd_engine.models.checkpoints.base import StoredTensor

_LOG = logging.getLogger(__name__)

# Modules of a layer whose products are one weight.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_OUT = ("self_attn.o_proj",)
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)

_BASE = "model."
_LAYER = re.compile(r"((?:[^.]+\.)*?)layers\.(\d{1,6})\.")
_WRAPPED = re.compile(r"(?:model\.|module\.|_orig_mod\.|pretrained_model\.)*")
_OUTSIDE_LAYERS = ("embed_tokens.", "norm.")


def with_plain_names(stored: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """The same tensors, the decoder's under `model.`.

    Raises:
        ValueError: the layers' names begin differently or unknown; the message says how.
    """
    prefixes = sorted({found[1] for name in stored if (found := _LAYER.match(name))})
    if prefixes == [_BASE]:
        return dict(stored)
    if len(prefixes) != 1 or not _WRAPPED.fullmatch(prefixes[0]):
        raise ValueError(f"model {source!r}: {_cause(prefixes, stored)}")
    prefix = prefixes[0]
    _LOG.info("%s: names of layers begin with %r; read as %r", source, prefix, _BASE)
    renamed = {_plain_name(name, prefix): tensor for name, tensor in stored.items()}
    if len(renamed) != len(stored):
        raise ValueError(f"model {source!r} holds tensors twice, with and without {prefix!r}")
    return renamed


def num_layers(names: Iterable[str]) -> int:
    """Number of layers that plain names tell of."""
    return 1 + max((int(m[2]) for m in map(_LAYER.match, names) if m and m[1] == _BASE), default=-1)


def _plain_name(name: str, prefix: str) -> str:
    if name.startswith((f"{prefix}layers.", *(prefix + part for part in _OUTSIDE_LAYERS))):
        return _BASE + name.removeprefix(prefix)
    outer = prefix.removesuffix(_BASE) if f".{prefix}".endswith(f".{_BASE}") else prefix
    return name.removeprefix(outer)  # a head lies beside the decoder


def _cause(prefixes: list[str], names: Iterable[str]) -> str:
    """Why the names are not those of a decoder."""
    if any(".lora_" in name for name in names):
        return (
            "its files hold a LoRA adapter beside the weights; give the adapter's own folder, or "
            "merge it (peft: merge_and_unload) and save again"
        )
    if not prefixes:
        shown = ", ".join(sorted(names)[:3]) or "none"
        return f"its tensors are not those of a supported decoder, such as {shown}"
    if len(prefixes) > 1:
        return (
            f"names of layers begin with {', '.join(map(repr, prefixes))}; all must begin with "
            f"{_BASE!r}: it is a model of several parts, or shards of different models are mixed"
        )
    return (
        f"names of layers begin with {prefixes[0]!r} where {_BASE!r} is expected; it was saved as "
        "part of another model: save the language model alone"
    )
