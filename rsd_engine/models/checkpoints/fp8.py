"""FP8 checkpoints: W = scale * q, with one scale for a tensor, an output or a block of a matrix.

On a GPU e4m3 stays in its bits; e5m2 is expanded there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import GroupedSource, StoredTensor
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("weight_scale_inv", "weight_scale")  # both are multiplied by
_OF_ACTIVATIONS = ("input_scale", "activation_scale")
_SCALE_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # those that kernels read


def check(settings: Mapping[str, Any]) -> None:
    """Raises ValueError if the block size is none."""
    size = settings.get("weight_block_size")
    if size is None:
        return
    if not isinstance(size, list) or len(size) != 2 or not all(_is_size(n) for n in size):
        raise ValueError(
            f"quantization_config: weight_block_size={size!r} must be null or two numbers from 1 "
            f"to {2**20}"
        )


def check_compressed(settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless compressed-tensors holds FP8 with a scale for a tensor or output."""
    groups = settings.get("config_groups")
    kinds = [
        group.get("weights") if isinstance(group, Mapping) else None
        for group in (groups.values() if isinstance(groups, Mapping) else ())
    ]
    is_known = all(
        isinstance(kind, Mapping)
        and (kind.get("type"), kind.get("num_bits")) == ("float", 8)
        and kind.get("strategy") in ("tensor", "channel")
        for kind in kinds
    )
    others = [name for name in ("sparsity_config", "transform_config") if settings.get(name)]
    if settings.get("format") != "float-quantized" or not kinds or not is_known or others:
        raise ValueError(
            f"quantization_config: compressed-tensors of format={settings.get('format')!r} is "
            "supported only as float-quantized, 8 bits of type float, strategy tensor or channel"
            + "".join(f", without {name}" for name in others)
        )


def expand(stored: dict[str, StoredTensor], settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Plain tensors in place of each FP8 tensor and its scale.

    Raises:
        ValueError: a scale is missing or of the wrong shape.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        stem, _, kind = name.rpartition(".")
        if kind in (*_SCALES, *_OF_ACTIVATIONS):
            continue
        if tensor.dtype not in _FP8:
            found[name] = tensor
            continue
        scale = next((stored[f"{stem}.{s}"] for s in _SCALES if f"{stem}.{s}" in stored), None)
        if kind != "weight" or len(tensor.shape) != 2 or scale is None:
            raise ValueError(
                f"FP8 tensor {name} in {tensor.file} must be a matrix 'weight' with "
                f"{' or '.join(_SCALES)} beside it"
            )
        repeats = _repeats(name, tensor, scale, settings.get("weight_block_size"))
        found[name] = StoredTensor(
            tensor.shape, torch.float32, tensor.file, tensor.nbytes + scale.nbytes,
            partial(_read, tensor, scale, repeats), "FP8",
            grouped=_grouped_source(name, tensor, scale, repeats),
        )  # fmt: skip
    return found


def _repeats(
    name: str, tensor: StoredTensor, scale: StoredTensor, block: list[int] | None
) -> tuple[int, int]:
    """Rows and columns that one element of the scale is for; 0: all."""
    rows, columns = tensor.shape
    allowed: dict[tuple[int, ...], tuple[int, int]] = {
        (): (0, 0), (1,): (0, 0), (1, 1): (0, 0), (rows,): (1, 0), (rows, 1): (1, 0),
    }  # fmt: skip
    if block is not None:
        allowed = {(-(-rows // block[0]), -(-columns // block[1])): (block[0], block[1])}
    if scale.shape not in allowed or not scale.dtype.is_floating_point or scale.dtype in _FP8:
        shown = " or ".join(str(list(shape)) for shape in allowed)
        kind = str(scale.dtype).removeprefix("torch.")
        raise ValueError(
            f"scale of tensor {name} in {scale.file} is {kind} of shape {list(scale.shape)}; "
            f"with weight_block_size={block} it must be floats of shape {shown}"
        )
    return allowed[scale.shape]


def _read(tensor: StoredTensor, scale: StoredTensor, repeats: tuple[int, int]) -> Tensor:
    rows, columns = tensor.shape
    factors = scale.read().float().reshape(scale.shape if len(scale.shape) == 2 else (-1, 1))
    if repeats[0] > 1:
        factors = factors.repeat_interleave(repeats[0], 0)[:rows]
    if repeats[1] > 0:
        factors = factors.repeat_interleave(repeats[1], 1)[:, :columns]
    return tensor.read().float() * factors


def _grouped_source(
    name: str, tensor: StoredTensor, scale: StoredTensor, repeats: tuple[int, int]
) -> GroupedSource | None:
    """None where products on a GPU cannot be made of the bits as they are."""
    (rows, columns), (scale_rows, size) = tensor.shape, repeats
    size = min(size, columns) or columns
    is_known = tensor.dtype == torch.float8_e4m3fn and tensor.num_elements > 0
    if not is_known or not GroupedSource.takes(columns, size):
        return None
    shape = (-(-rows // (scale_rows or rows)), columns // size)
    dtype = scale.dtype if scale.dtype in _SCALE_TYPES else torch.float32

    def make(device: torch.device) -> GroupedMatrix:
        values, factors = tensor.read().to(device), scale.read().to(device, dtype)
        if bool((values.view(torch.uint8) & 0x7F == 0x7F).any()):
            raise ValueError(
                f"FP8 tensor {name} in {tensor.file} holds values that are no number (bits 0x7f "
                "or 0xff); the checkpoint is damaged"
            )
        return GroupedMatrix.pack(
            ValueKind.FP8, values, factors.reshape(shape).contiguous(),
            group_size=size, scale_rows=scale_rows or rows,
        )  # fmt: skip

    return GroupedSource(
        ValueKind.FP8, (rows, columns), size, scale_rows or rows, dtype, False, make
    )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= 2**20
