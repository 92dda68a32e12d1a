"""RMSNorm of whole rows in Triton: one program a row.

out[n] = x[n] / sqrt(mean(x[n]²) + eps) * weight (+ residual[n])

Twins: `rsd_kernels.norm.twin`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import (
    FLOAT_DTYPES,
    Launch,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
    next_power_of_2,
    overlapping,
)
from rsd_kernels.overlap import allow_next_kernel, wait_for_previous_kernel

_MAX_WIDTH = 16384  # a row is held in registers


@triton.jit
def _rms_norm_kernel(
    x: tl.tensor,  # [N, WIDTH]
    weight: tl.tensor,  # [WIDTH]
    out: tl.tensor,  # [N, WIDTH]
    row_end: tl.tensor,  # [N]: row n of out is that of x at row_end[n] - 1; None: at n
    residual: tl.tensor,  # [N, WIDTH] or None
    eps: tl.tensor,
    stride_x: tl.tensor,
    stride_residual: tl.tensor,
    stride_out: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # at least WIDTH
    OVERLAP: tl.constexpr,
) -> None:
    allow_next_kernel(OVERLAP)
    wait_for_previous_kernel(OVERLAP)
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < WIDTH
    i_x = i_row
    if row_end is not None:
        i_x = tl.maximum(tl.load(row_end + i_row).to(tl.int64) - 1, 0)
    b_x = tl.load(x + i_x * stride_x + o, mask=m, other=0.0).to(tl.float32)
    b_weight = tl.load(weight + o, mask=m, other=0.0).to(tl.float32)
    b_out = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / WIDTH + eps) * b_weight
    if residual is not None:
        p_residual = residual + i_row * stride_residual + o
        b_out += tl.load(p_residual, mask=m, other=0.0).to(tl.float32)
    tl.store(out + i_row * stride_out + o, b_out.to(out.dtype.element_ty), mask=m)


@triton.jit
def inverse_rms(
    p_x: tl.tensor,  # [ROWS, 1] rows of x
    eps: tl.tensor,
    m_r: tl.tensor,  # [ROWS] which rows exist
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """[ROWS] 1 / sqrt(mean(x²) + eps), of rows as a tile of a product has them."""
    b_square = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(0, WIDTH, BLOCK):
        o = i + tl.arange(0, BLOCK)
        m_x = m_r[:, None] & (o < WIDTH)[None, :]
        b_x = tl.load(p_x + o[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_square += b_x * b_x
    return tl.rsqrt(tl.sum(b_square, 1) / WIDTH + eps)


def rms_norm(
    x: Tensor,  # [N, width]
    weight: Tensor,  # [width]
    eps: float,
    *,
    residual: Tensor | None = None,  # [N, width]; may be `out` itself
    out: Tensor | None = None,  # [N, width]; may be `x` itself
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight + residual, in fp32, rounded once.

    Returns:
        [N, width] in the dtype of `x`; `out` itself when it is given.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    out = torch.empty_like(x) if out is None else out
    _check(x, weight, out, num_rows=x.shape[0])
    if residual is not None:
        check_shape("residual", residual, tuple(x.shape))
        check_dtype("residual", residual, x.dtype)
        check_last_contiguous("residual", residual)
        check_devices(x=x, residual=residual)
    rms_norm_launch(x, weight, eps, out=out, residual=residual).run()
    return out


def rows_norm(
    x: Tensor,  # [n, K]
    row_end: Tensor,  # [M] int32: a row that is wanted, plus 1
    norm: Tensor,  # [K]
    eps: float,
    *,
    out: Tensor,  # [M, K], not `x`
) -> Tensor:
    """rms_norm of some rows, in fp32, rounded once.

    Returns:
        `out`. Where `row_end` is 0 it is undefined.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    check_shape("row_end", row_end, (out.shape[0],))
    check_dtype("row_end", row_end, torch.int32)
    check_last_contiguous("row_end", row_end)
    _check(x, norm, out, num_rows=out.shape[0])
    check_devices(x=x, row_end=row_end)
    rms_norm_launch(x, norm, eps, out=out, row_end=row_end).run()
    return out


def _check(x: Tensor, weight: Tensor, out: Tensor, *, num_rows: int) -> None:
    if x.dim() != 2 or not 1 <= x.shape[1] <= _MAX_WIDTH:
        raise ValueError(f"x has shape {list(x.shape)}; it must be [N, 1 to {_MAX_WIDTH}]")
    check_shape("weight", weight, tuple(x.shape[1:]))
    check_shape("out", out, (num_rows, x.shape[1]))
    check_dtype("x", x, *FLOAT_DTYPES)
    for name, tensor in (("x", x), ("weight", weight), ("out", out)):
        check_dtype(name, tensor, x.dtype)
        check_last_contiguous(name, tensor)
    check_devices(x=x, weight=weight, out=out)


def rms_norm_launch(
    x: Tensor,  # [N, width]
    weight: Tensor,  # [width]
    eps: float,
    *,
    out: Tensor,  # [S, width]
    row_end: Tensor | None = None,  # [S] int32
    residual: Tensor | None = None,  # [S, width]
) -> Launch:
    """The launch of `rms_norm` or, with `row_end`, of `rows_norm`."""
    block = next_power_of_2(x.shape[1])
    return Launch(
        kernel=_rms_norm_kernel,
        grid=(out.shape[0],),
        args={
            "x": x,
            "weight": weight,
            "out": out,
            "row_end": row_end,
            "residual": residual,
            "eps": eps,
            "stride_x": x.stride(0),
            "stride_residual": 0 if residual is None else residual.stride(0),
            "stride_out": out.stride(0),
            "WIDTH": x.shape[1],
            "BLOCK": block,
        },
        num_warps=min(16, max(1, block // 256)),  # 8 elements a thread
        overlap=overlapping(x.shape[0]),
    )
