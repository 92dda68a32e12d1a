"""Products of more than 16 rows with a matrix in few bits: each program expands what it multiplies.

Nothing is expanded in memory. Twin: `rsd_kernels.linear.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.grouped.operand import step_inputs, weight_args
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.launch import Launch, ceil_div
from rsd_kernels.linear.kernel import multiply_tile


@triton.jit(do_not_specialize=["num_rows"])
def _grouped_rows_kernel(
    x: tl.tensor,  # [num_rows, NUM_INPUTS]
    weight: tl.tuple,  # [NUM_OUTPUTS, NUM_INPUTS], of `rsd_kernels.grouped.operand`
    bias: tl.tensor,  # [NUM_OUTPUTS] or None
    residual: tl.tensor,  # [num_rows, NUM_OUTPUTS] or None
    out: tl.tensor,  # [num_rows, NUM_OUTPUTS]
    num_rows: tl.tensor,
    stride_x: tl.tensor,
    stride_weight: tl.tensor,
    stride_residual: tl.tensor,
    stride_out: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> None:
    # Programs one after another read the same weights.
    i_row = tl.program_id(0).to(tl.int64) * ROWS
    if residual is not None:
        residual += i_row * stride_residual
    multiply_tile(
        tl.program_id(1), x + i_row * stride_x, None, weight, bias, residual,
        out + i_row * stride_out, 0.0, num_rows - i_row, stride_x, stride_weight, stride_residual,
        stride_out, NUM_INPUTS, NUM_OUTPUTS, FORMAT, False, False, True, False, ROWS, BLOCK_N,
        BLOCK_K, NUM_STAGES,
    )  # fmt: skip


def grouped_rows_launch(
    x: Tensor,  # [num_rows, num_inputs]
    weight: GroupedWeight,  # [num_outputs, num_inputs]
    *,
    out: Tensor,  # [num_rows, num_outputs]
    residual: Tensor | None = None,  # [num_rows, num_outputs]; may be `out` itself
) -> Launch:
    """The launch of x Wᵀ + bias + residual; its arguments are not checked."""
    num_rows, num_inputs = x.shape
    num_outputs = out.shape[1]
    if x.dtype.itemsize > 2:  # without tensor cores
        rows, block_n, warps, stages = 16, 16, 4, 3
    else:
        rows, block_n, warps, stages = (64, 64, 4, 3) if num_rows <= 64 else (128, 64, 8, 2)
    return Launch(
        kernel=_grouped_rows_kernel,
        grid=(ceil_div(num_rows, rows), ceil_div(num_outputs, block_n)),
        args={
            "x": x,
            **weight_args(weight),
            "bias": weight.bias,
            "residual": residual,
            "out": out,
            "num_rows": num_rows,
            "stride_x": x.stride(0),
            "stride_residual": 0 if residual is None else residual.stride(0),
            "stride_out": out.stride(0),
            "NUM_INPUTS": num_inputs,
            "NUM_OUTPUTS": num_outputs,
            "ROWS": rows,
            "BLOCK_N": block_n,
            "BLOCK_K": step_inputs(weight.matrix, x.dtype),
            "NUM_STAGES": stages,
        },
        num_warps=warps,
        num_stages=stages,
    )
