"""What the reward kernels take for granted about their arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rsd_kernels.launch import FLOAT_DTYPES, check_devices, check_dtype, check_shape
from rsd_kernels.reward.heads import RewardHead, TwoClassHead, ValueHead


def check_hidden(hidden: Tensor, head: RewardHead, num_rows: int) -> None:
    if hidden.dim() != 2 or hidden.shape[0] < num_rows or hidden.shape[1] < 1:
        raise ValueError(
            f"hidden has shape {list(hidden.shape)}; it must be [rows, hidden] with at least "
            f"{num_rows} rows"
        )
    check_dtype("hidden", hidden, *FLOAT_DTYPES)
    if hidden.stride(1) != 1:
        raise ValueError(
            f"hidden has strides {tuple(hidden.stride())}; its last dimension must be contiguous"
        )


def check_head(head: RewardHead, hidden: Tensor) -> None:
    """Shapes fit `hidden`; all is contiguous and on its device."""
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
    else:
        raise ValueError(f"head is a {type(head).__name__}; allowed: ValueHead, TwoClassHead")
    tensors: dict[str, Tensor] = {name: getattr(head, name) for name in shapes}
    check_devices(hidden=hidden, **tensors)
    for name, shape in shapes.items():
        check_shape(name, tensors[name], shape)
        check_dtype(name, tensors[name], *FLOAT_DTYPES)
        if not tensors[name].is_contiguous():
            raise ValueError(
                f"{name} has strides {tuple(tensors[name].stride())}; it must be contiguous"
            )


def check_policy(policy: dict[str, Tensor], hidden: Tensor) -> None:
    """One value a row each."""
    check_devices(hidden=hidden, **policy)
    for name, tensor in policy.items():
        check_shape(name, tensor, (hidden.shape[0],))
        whole = name in ("policy_kind", "accept")
        check_dtype(name, tensor, torch.int32 if whole else torch.float32)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tuple(tensor.stride())}; it must be contiguous")


def check_scratch(scratch: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The first elements of `scratch` in this shape, or a new one if there is none."""
    if scratch is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    check_dtype("scratch", scratch, torch.float32)
    if scratch.device != device or not scratch.is_contiguous():
        raise ValueError(f"scratch must be contiguous and on {device}; it is on {scratch.device}")
    size = math.prod(shape)
    if scratch.numel() < size:
        raise ValueError(f"scratch has {scratch.numel()} elements; it must have at least {size}")
    return scratch.view(-1)[:size].view(shape)
