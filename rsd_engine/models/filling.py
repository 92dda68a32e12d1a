"""Chooses the tensors of a checkpoint that a model needs, and puts them where they belong."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.checkpoints.weight_files import listing

_LOG = logging.getLogger(__name__)

# What some checkpoints hold beside the weights: buffers, and scales of a quantised KV cache.
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias|[kqv]_scale"
    r"|prob_output_scale|kv_scale)$"
)
# Bytes: safetensors promises no more, and kernels of a GPU load 16 at once.
_ALIGNMENT = {"cpu": 8, "cuda": 16}


def choose(
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, Tensor],
    *,
    source: str,
    ignored: tuple[str, ...] = (),
) -> dict[str, StoredTensor]:
    """The tensors that a model needs, in the checkpoint's order. Nothing is read.

    Args:
        stored: the checkpoint's tensors by plain names.
        wanted: name -> a tensor of the shape that the model needs; may be on the meta device.
        source: name of the model, for messages.
        ignored: beginnings of names that the model does not use.

    Raises:
        ValueError: a tensor is missing, unexpected, of the wrong shape or not of floats; the
            message names it.
    """
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        raise ValueError(f"model {source!r} lacks {listing(missing)}{_cause(missing, stored)}")
    extra = sorted(stored.keys() - wanted.keys())
    unused = [name for name in extra if name.startswith(ignored) or _BUFFERS.search(name)]
    unexpected = [name for name in extra if name not in set(unused)]
    if unexpected:
        raise ValueError(
            f"model {source!r} has unexpected tensors: {listing(unexpected)}; its config.json "
            "describes another model"
        )
    if unused:
        _LOG.info("%s: ignoring tensors that the model does not use: %s", source, listing(unused))
    chosen = {name: tensor for name, tensor in stored.items() if name in wanted}
    for name, tensor in chosen.items():
        _check(name, tensor, tuple(wanted[name].shape), source)
    return chosen


def fill(places: Mapping[str, Tensor], chosen: Mapping[str, StoredTensor]) -> None:
    """Reads every tensor into its place, converting the dtype.

    A place that is a whole tensor and would become an exact copy on the same device takes over the
    tensor as read instead. For most files that is a mapping: the file is then read when the weight
    is first used, and its pages can be dropped and read again. Of a model that is in memory it is
    the model's own weight.

    Args:
        places: name -> where it goes.
        chosen: from `choose`.
    """
    for name, tensor in chosen.items():
        place, value = places[name], tensor.read()
        if _can_take_over(place, value):
            place.set_(value)  # type: ignore[call-overload]
        else:
            place.copy_(value)


def log_expansion(
    source: str, chosen: Mapping[str, StoredTensor], places: Mapping[str, Tensor]
) -> None:
    """Says what quantised weights take in memory, for they are computed with as plain ones."""
    packed = {name: tensor for name, tensor in chosen.items() if tensor.packing}
    if packed:
        _LOG.info(
            "%s: expanding %d tensors stored as %s: %.0f MiB on disk, %.0f MiB in memory",
            source, len(packed), ", ".join(sorted({str(t.packing) for t in packed.values()})),
            sum(tensor.nbytes for tensor in packed.values()) / 2**20,
            sum(places[name].nbytes for name in packed) / 2**20,
        )  # fmt: skip


def _can_take_over(place: Tensor, value: Tensor) -> bool:
    is_whole = place.untyped_storage().nbytes() == place.nbytes
    return (
        is_whole
        and place.device == value.device
        and place.device.type in _ALIGNMENT
        and place.dtype == value.dtype
        and value.is_contiguous()
        and value.data_ptr() % _ALIGNMENT[place.device.type] == 0
    )


def _check(name: str, tensor: StoredTensor, shape: tuple[int, ...], source: str) -> None:
    where = f"model {source!r}: tensor {name} in {tensor.file}"
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"{where} is of {kind}; weights must be float64, float32, float16 or bfloat16, or be "
            "quantised as quantization_config in config.json says"
        )
    if tensor.shape != shape:
        raise ValueError(
            f"{where} has shape {list(tensor.shape)}; by the config it must be {list(shape)}: "
            "config and weights are of different models, give those that belong together"
        )


def _cause(missing: list[str], stored: Mapping[str, StoredTensor]) -> str:
    """Why tensors may be missing, as an ending of the message."""
    if missing == ["lm_head.weight"]:
        return "; if it is the embedding, set tie_word_embeddings to true in config.json"
    stem = missing[0].removesuffix(".weight")
    if f"{stem}.qweight" in stored:
        return "; its weights are quantised, but config.json has no quantization_config"
    if f"{stem}.base_layer.weight" in stored:
        return "; a LoRA adapter is not merged: merge it (peft: merge_and_unload) and save again"
    return "; its files are incomplete, or its config.json describes another model"
