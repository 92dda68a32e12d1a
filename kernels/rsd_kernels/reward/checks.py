"""What the reward kernels require of their arguments; a ValueError names the one that differs."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from rsd_kernels.launch import (
    FLOAT_DTYPES,
    check_contiguous,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
)
from rsd_kernels.reward.heads import ClassesHead, EnsembleHead, RewardHead, TwoClassHead, ValueHead


def check_hidden(hidden: Tensor, num_rows: int) -> None:
    if hidden.dim() != 2 or hidden.shape[0] < num_rows or hidden.shape[1] < 1:
        raise ValueError(
            f"hidden has shape {list(hidden.shape)}; it must be [rows, hidden] with at least "
            f"{num_rows} rows"
        )
    check_dtype("hidden", hidden, *FLOAT_DTYPES)
    check_last_contiguous("hidden", hidden)


def check_head(head: RewardHead, hidden: Tensor) -> None:
    """The head fits `hidden`, lies on its device and is contiguous."""
    width = hidden.shape[1]
    shapes: dict[str, tuple[int, ...]] = {"norm_weight": (width,)}
    if isinstance(head, ValueHead):
        shapes |= {"weight": (1, width), "bias": (1,)}
    elif isinstance(head, TwoClassHead):
        units = head.inner.shape[0]
        shapes |= {
            "inner": (units, width), "inner_bias": (units,),
            "classes": (2, units), "classes_bias": (2,),
        }  # fmt: skip
    elif isinstance(head, EnsembleHead):
        count, units = head.inner.shape[0], head.inner.shape[-1]
        shapes |= {
            "inner": (count, width, units), "inner_bias": (count, units),
            "middle": (count, units, units), "middle_bias": (count, units),
            "out": (count, units, 1), "out_bias": (count, 1),
        }  # fmt: skip
    elif isinstance(head, ClassesHead):
        count = head.weight.shape[0]
        shapes |= {"weight": (count, width), "bias": (count,), "values": (count,)}
    else:
        raise ValueError(
            f"head is a {type(head).__name__}; "
            f"allowed: {', '.join(kind.__name__ for kind in get_args(RewardHead))}"
        )
    tensors: dict[str, Tensor] = {name: getattr(head, name) for name in shapes}
    check_devices(hidden=hidden, **tensors)
    for name, shape in shapes.items():
        _check_contiguous(name, tensors[name], shape, *FLOAT_DTYPES)


def check_policy(policy: dict[str, Tensor], hidden: Tensor) -> None:
    """Vectors of one value a row, on the device of `hidden`."""
    check_devices(hidden=hidden, **policy)
    for name, tensor in policy.items():
        dtype = torch.int32 if name in ("policy_kind", "accept") else torch.float32
        _check_contiguous(name, tensor, (hidden.shape[0],), dtype)


def _check_contiguous(
    name: str, tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype
) -> None:
    check_shape(name, tensor, shape)
    check_dtype(name, tensor, *dtypes)
    check_contiguous(name, tensor)


def check_scratch(scratch: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The first elements of `scratch` in this shape; newly allocated if it is None."""
    if scratch is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    check_dtype("scratch", scratch, torch.float32)
    if scratch.device != device or not scratch.is_contiguous():
        raise ValueError(f"scratch must be contiguous and on {device}; it is on {scratch.device}")
    size = math.prod(shape)
    if scratch.numel() < size:
        raise ValueError(f"scratch has {scratch.numel()} elements; it must have at least {size}")
    return scratch.view(-1)[:size].view(shape)
