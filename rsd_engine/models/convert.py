"""A checkpoint's tensors as the decoder computes with them.

What an architecture would do at every forward is done once, where it comes to the same:

- q, k and v, or gate and up, stored as one tensor are told apart (Phi-3).
- A norm that multiplies by 1 + w becomes one that multiplies by its weight (Gemma).
- A factor of the logits goes into the final norm, whose output only the LM head reads (Granite).
- Where a part of each head is rotated (Phi-4-mini), the rows of q and k move: the kernels pair
  dimension i with i + head_dim / 2, the model with i + half of that part. Scores are sums over all
  dimensions, whose order is free as long as q and k have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import GroupedSource, StoredTensor
from rsd_engine.models.config import ModelConfig

_FINAL_NORM = "model.norm.weight"


def as_computed(
    stored: Mapping[str, StoredTensor], config: ModelConfig, source: str
) -> dict[str, StoredTensor]:
    """The tensors under the names of a Llama checkpoint; those that need no change as they are.

    Args:
        stored: the checkpoint's tensors by plain names.
        config: of the same checkpoint.
        source: name of the model, for messages.

    Raises:
        ValueError: a merged tensor does not have as many rows as its parts; the message names it.
    """
    order = _order_of_head(config)
    return {
        name: _changed(name, tensor, config, order)
        for whole_name, whole in stored.items()
        for name, tensor in _parts(whole_name, whole, config, source)
    }


def _parts(
    name: str, whole: StoredTensor, config: ModelConfig, source: str
) -> Iterator[tuple[str, StoredTensor]]:
    stem, _, kind = name.rpartition(".")
    block, _, part = stem.rpartition(".")
    q, kv, inter = config.q_width, config.kv_width, config.intermediate_size
    merged = {
        "qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "gate_up_proj": {"gate_proj": inter, "up_proj": inter},
    }.get(part)
    if merged is None:
        yield name, whole
        return
    num_rows, start = sum(merged.values()), 0
    if whole.shape[:1] != (num_rows,):
        raise ValueError(
            f"model {source!r}: tensor {name} in {whole.file} has shape {list(whole.shape)}; by "
            f"the config it must have {num_rows} rows: config and weights are of different models, "
            "give those that belong together"
        )
    for part_name, rows in merged.items():
        yield f"{block}.{part_name}.{kind}", _rows(whole, start, rows)
        start += rows


def _rows(whole: StoredTensor, start: int, count: int) -> StoredTensor:
    stored, outputs = whole.stored, torch.arange(start, start + count)
    return replace(
        whole,
        shape=(count, *whole.shape[1:]),
        nbytes=whole.nbytes * count // whole.shape[0],
        read=lambda: whole.read().narrow(0, start, count),
        stored=stored and (lambda: stored().narrow(start, count)),
        grouped=whole.grouped and _selected(whole.grouped, outputs),
    )


def _changed(
    name: str, stored: StoredTensor, config: ModelConfig, order: Tensor | None
) -> StoredTensor:
    offset, scale = 0.0, 1.0
    if name.endswith("norm.weight"):
        offset, scale = config.norm_offset, config.logits_scale if name == _FINAL_NORM else 1.0
    if (offset, scale) != (0.0, 1.0) and stored.dtype.is_floating_point:
        read = partial(_scaled, stored.read, offset, scale)
        return replace(stored, dtype=torch.float32, read=read, stored=None)
    if order is not None and (".q_proj." in name or ".k_proj." in name):
        rows = _order_of_rows(order, stored.shape[0])
        held = stored.stored
        return replace(
            stored,
            read=lambda: stored.read().index_select(0, rows),
            stored=held and (lambda: held().select(rows)),
            grouped=stored.grouped and _selected(stored.grouped, rows),
        )
    return stored


def _selected(whole: GroupedSource, outputs: Tensor) -> GroupedSource:
    """Some of the outputs of a matrix, each with a scale of its own."""
    return replace(
        whole,
        shape=(len(outputs), whole.shape[1]),
        scale_rows=1,
        make=lambda device: whole.make(device).select(outputs.to(device)),
    )


def _scaled(read: Callable[[], Tensor], offset: float, scale: float) -> Tensor:
    """(w + offset) * scale in fp32, to be rounded once."""
    return (read().float() + offset) * scale


def _order_of_head(config: ModelConfig) -> Tensor | None:
    """[head_dim] int64: for each place in a head the dimension that goes there; None: its own.

    First the first halves of the rotated pairs, so that with the kernels' partner of a place, half
    a head on, comes the second half.
    """
    dims = (rope.rotated_dims(config.head_dim) for rope in config.ropes)
    rotated = min(dims, default=config.head_dim)
    if rotated == config.head_dim:
        return None
    low, high = torch.arange(rotated).chunk(2)
    rest_low, rest_high = torch.arange(rotated, config.head_dim).chunk(2)
    return torch.cat((low, rest_low, high, rest_high))


def _order_of_rows(order: Tensor, num_rows: int) -> Tensor:
    """[num_rows] int64: the rows of every head in this order."""
    first = torch.arange(0, num_rows, len(order)).unsqueeze(1)
    return (first + order).flatten()
