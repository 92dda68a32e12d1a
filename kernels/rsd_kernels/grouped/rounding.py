"""Plain matrices rounded to few bits: each value to the nearest, in groups of inputs.

A group has the scale that leaves the least square error, of a few between that at which its largest
value just fits and smaller ones, which cut it off: of four bits that is a better one for most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind

_LARGEST = {ValueKind.INT4: 8.0, ValueKind.INT8: 127.0, ValueKind.FP8: 448.0}
_SHARES = {ValueKind.INT4: (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)}
_SCALE_DTYPES = {ValueKind.INT4: torch.bfloat16}
_ROWS = 1024  # rounded at a time


def scale_dtype(kind: ValueKind) -> torch.dtype:
    """What scales are stored in: that of many small groups in two bytes."""
    return _SCALE_DTYPES.get(kind, torch.float32)


def rounded(weight: Tensor, kind: ValueKind, group_size: int) -> GroupedMatrix:
    """A matrix in few bits, without zeros and in the order of its inputs.

    Args:
        weight: [N, K] of a float dtype, on any device.
        kind: of the values.
        group_size: inputs that share a scale; it divides K.

    Raises:
        ValueError: a value is not finite, or the group size is not supported.
    """
    if not bool(weight.isfinite().all()):
        raise ValueError("it has values that are not finite")
    parts = [_rounded(rows.float(), kind, group_size) for rows in weight.split(_ROWS)]
    values, scales = (torch.cat(found) for found in zip(*parts, strict=True))
    return GroupedMatrix.pack(kind, values, scales, group_size=group_size)


def _rounded(weight: Tensor, kind: ValueKind, group_size: int) -> tuple[Tensor, Tensor]:
    """Values [n, K] as `GroupedMatrix.pack` takes them, and scales [n, groups]."""
    groups = weight.unflatten(1, (-1, group_size))
    place = groups.abs().argmax(-1, keepdim=True)
    largest = groups.gather(-1, place)
    # -8 has no counterpart: of four bits the largest value takes it.
    largest = -largest if kind is ValueKind.INT4 else largest.abs()
    values, scales, error = _with_scale(groups, largest / _LARGEST[kind], kind)
    for share in _SHARES.get(kind, ()):
        tried, scale, left = _with_scale(groups, share * largest / _LARGEST[kind], kind)
        better = left < error
        values, scales, error = (
            torch.where(better, new, old)
            for new, old in ((tried, values), (scale, scales), (left, error))
        )
    if kind is ValueKind.INT4:
        values = values + 8
    dtype = {ValueKind.INT4: torch.uint8, ValueKind.INT8: torch.int8}.get(kind)
    return values.flatten(1).to(dtype or torch.float8_e4m3fn), scales.squeeze(-1)


def _with_scale(groups: Tensor, scale: Tensor, kind: ValueKind) -> tuple[Tensor, Tensor, Tensor]:
    """Values float32, the scale as it is stored, and the square error [n, groups, 1]."""
    scale = scale.to(scale_dtype(kind))
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # of a group of zeros
    exact = groups / scale.float()
    most = _LARGEST[kind]
    if kind is ValueKind.FP8:
        values = exact.clamp(-most, most).to(torch.float8_e4m3fn).float()
    else:
        values = exact.round().clamp(-most, 7.0 if kind is ValueKind.INT4 else most)
    error = (values * scale.float() - groups).square().sum(-1, keepdim=True)
    return values, scale, error
