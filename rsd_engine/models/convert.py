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

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig

_FINAL_NORM = "model.norm.weight"


def as_computed(
    tensors: Iterable[tuple[str, Tensor]], config: ModelConfig, *, source: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors under the names of a Llama checkpoint; those that need no change as they are.

    Args:
        tensors: those of a checkpoint, by name.
        config: of the same checkpoint.
        source: name of the model, for messages.

    Raises:
        ValueError: a merged tensor does not have as many rows as its parts; the message names it.
    """
    order = _order_of_head(config)
    for whole_name, whole in tensors:
        for name, tensor in _parts(whole_name, whole, config, source):
            yield name, _changed(name, tensor, config, order)


def _parts(
    name: str, tensor: Tensor, config: ModelConfig, source: str
) -> Iterator[tuple[str, Tensor]]:
    stem, _, kind = name.rpartition(".")
    block, _, part = stem.rpartition(".")
    q, kv, inter = config.q_width, config.kv_width, config.intermediate_size
    merged = {
        "qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "gate_up_proj": {"gate_proj": inter, "up_proj": inter},
    }.get(part)
    if merged is None:
        yield name, tensor
        return
    num_rows = sum(merged.values())
    if tensor.dim() == 0 or tensor.shape[0] != num_rows:
        raise ValueError(
            f"model {source!r}: tensor {name} has shape {list(tensor.shape)}; by its config it "
            f"must have {num_rows} rows"
        )
    for part_name, rows in zip(merged, tensor.split(list(merged.values())), strict=True):
        yield f"{block}.{part_name}.{kind}", rows


def _changed(name: str, tensor: Tensor, config: ModelConfig, order: Tensor | None) -> Tensor:
    if config.norm_offset and name.endswith("norm.weight"):
        tensor = tensor.float() + config.norm_offset
    if config.logits_scale != 1.0 and name == _FINAL_NORM:
        tensor = tensor.float() * config.logits_scale
    if order is not None and (".q_proj." in name or ".k_proj." in name):
        return _reordered(tensor, config.head_dim, order)
    return tensor


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


def _reordered(tensor: Tensor, head_dim: int, order: Tensor) -> Tensor:
    """The rows of every head in this order; a tensor that is not made of heads as it is."""
    if tensor.dim() == 0 or tensor.shape[0] % head_dim:
        return tensor
    heads = tensor.view(-1, head_dim, *tensor.shape[1:])
    return heads.index_select(1, order).view(tensor.shape)
