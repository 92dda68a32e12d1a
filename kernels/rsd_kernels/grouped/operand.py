"""A weight as kernels of products take it: its arguments, and how a product with it is cut."""

from __future__ import annotations

import math
from typing import Any

import torch

from rsd_kernels.grouped.matrix import MIN_GROUP, GroupedMatrix, ValueKind
from rsd_kernels.grouped.weight import DeviceWeight
from rsd_kernels.launch import (
    FLOAT_DTYPES,
    ceil_div,
    check_contiguous,
    check_devices,
    check_dtype,
    check_shape,
)
from rsd_kernels.linear.tiles import (
    MAX_ROWS,
    ProjectionTiles,
    fill_device,
    projection_tiles,
    stages_in_flight,
)
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.state.args import bundle

GroupedArgs = bundle(
    "GroupedArgs", "stored", "scales", "zeros", "order", "stride_scales", "stride_zeros"
)
GroupedFormat = bundle(
    "GroupedFormat", "kind", "group_size", "scale_rows", "slices", "sharing", "row_width"
)
_BLOCK_K = 128  # inputs of a step where values are not packed in words
_FEW_ROWS = 8  # of x in a tile; tensor cores take 16, and no norm is made of the others
_FEW_STAGES = 4  # of a product that unpacking limits, not reading
_BLOCK_N = (32, 64)  # rows of weight; of fewer, four warps would multiply some twice
_WIDE_BLOCK_N = (16,)  # in float32, without tensor cores


def weight_args(weight: DeviceWeight) -> dict[str, Any]:
    """The arguments `weight`, `stride_weight` and `FORMAT` of a kernel.

    FORMAT of a weight in few bits: kind of its values, group size, outputs that share a scale,
    slices of a step's inputs (fields of a word), how many of them one after another share a scale,
    elements of a row of values.
    """
    if isinstance(weight, LinearWeight):
        matrix = weight.matrix
        return {"weight": matrix, "stride_weight": matrix.stride(0), "FORMAT": None}
    held = weight.matrix
    given = GroupedArgs(
        held.values,
        held.scales,
        held.zeros,
        held.order,
        held.scales.shape[0],
        held.num_outputs,
    )
    slices = len(held.kind.shifts) or 1
    whole = held.group_size == held.num_inputs
    form = GroupedFormat(
        held.kind.value,
        held.group_size,
        held.scale_rows,
        slices,
        slices if whole else math.gcd(held.group_size // MIN_GROUP, slices),
        held.values.shape[1],
    )
    return {"weight": given, "stride_weight": held.values.stride(0), "FORMAT": form}


def tiles_of(
    weight: DeviceWeight,
    num_rows: int,
    num_outputs: int,  # pairs of outputs if gated
    *,
    gated: bool,
    normed: bool,
    dtype: torch.dtype,
) -> ProjectionTiles:
    """How a product of at most `MAX_ROWS` rows is cut."""
    if isinstance(weight, LinearWeight):
        return projection_tiles(
            num_rows, num_outputs, weight.num_inputs, gated=gated, normed=normed, dtype=dtype
        )
    matrix = weight.matrix
    block_k = step_inputs(matrix, dtype)
    wide_dtype = dtype == torch.float32
    sizes = [n // 2 if gated else n for n in (_WIDE_BLOCK_N if wide_dtype else _BLOCK_N)]
    if matrix.group_size < _BLOCK_K:  # registers would hold many scales too
        sizes = sizes[:1]
    # A tile reads all of x, so it is as large as leaves the device busy.
    filling = [n for n in sizes if fill_device(ceil_div(num_outputs, n))]
    block_n = max(filling, default=sizes[0])
    num_tiles = ceil_div(num_outputs, block_n)
    resident = 2 if gated or normed or wide_dtype else 3
    values = block_n * (2 if gated else 1) * block_k * matrix.kind.bits // 8
    rows = _FEW_ROWS if normed and num_rows <= _FEW_ROWS else MAX_ROWS
    others = rows * block_k * dtype.itemsize * (2 if normed else 1)
    steps = ceil_div(matrix.num_inputs, block_k)
    stages = stages_in_flight(num_tiles, values, others, steps, resident)
    if normed and matrix.group_size < _BLOCK_K:  # more take registers that there are not on sm_100
        stages = min(stages, _FEW_STAGES)
    return ProjectionTiles(rows, block_n, block_k, 4, stages, True, num_tiles, resident)


def step_inputs(matrix: GroupedMatrix, dtype: torch.dtype) -> int:
    """Inputs of a step of the product's loop: a line of words, else some that share a scale."""
    if matrix.kind.shifts:
        return MIN_GROUP * len(matrix.kind.shifts)
    whole = matrix.group_size == matrix.num_inputs
    most = MIN_GROUP if dtype == torch.float32 else _BLOCK_K
    return most if whole else math.gcd(matrix.group_size, most)


def check_operand(matrix: GroupedMatrix, shape: tuple[int, int]) -> None:
    """Raises ValueError unless kernels can multiply by the matrix, which must have this shape."""
    if matrix.shape != shape:
        raise ValueError(f"weight has shape {list(matrix.shape)}; it must be {list(shape)}")
    check_dtype("scales", matrix.scales, *FLOAT_DTYPES)
    if matrix.kind is ValueKind.FP8 and matrix.zeros is not None:
        raise ValueError("the weight is in fp8 and has zeros; only integers may have them")
    check_contiguous("scales, transposed,", matrix.scales.t())
    if matrix.zeros is not None:
        check_dtype("zeros", matrix.zeros, torch.int8)
        check_contiguous("zeros, transposed,", matrix.zeros.t())
    if matrix.order is not None:
        check_shape("order", matrix.order, (matrix.num_inputs,))
        check_dtype("order", matrix.order, torch.int32)
    check_devices(
        weight=matrix.values, scales=matrix.scales, zeros=matrix.zeros, order=matrix.order
    )
