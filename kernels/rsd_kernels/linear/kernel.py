"""Matrix products of up to 16 rows in Triton, with norm, bias, activation and residual fused in.

y[r, n] = sum_k h[r, k] weight[n, k] (+ bias[n]) (+ residual[r, n])

where h is x or rms_norm(x); a gated product stores f(y[r, n]) * y[r, N + n], where f is silu or
gelu. At so few rows the time goes into reading the weight, which is read once. Up to 4 rows are
multiplied on plain cores; 5 to 16 rows fill one tile of the tensor cores. A norm scales the
finished sums, so no pass over x delays the first read of the weight (except in fp16 on tensor
cores, where the sums could overflow).

Twins: `rsd_kernels.linear.twin`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.activation.kernel import gated as gated_activation
from rsd_kernels.launch import Launch, ceil_div, next_power_of_2, overlapping
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.overlap import (
    LINE_BYTES,
    allow_next_kernel,
    prefetch,
    prefetch_vector,
    wait_for_previous_kernel,
)

MAX_ROWS = 16
# Of the weight, prefetched by each program before it waits for the previous kernel. The programs
# that are resident at a time then prefetch 5 to 9 MB: what an H100 reads in 2 to 3 us.
PREFETCH_BYTES = 16384

_PLAIN_ROWS = 4  # up to so many rows are multiplied without tensor cores
_PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100


@triton.jit
def prefetch_weights(
    p_w: tl.tensor,  # [BLOCK_N, 1] rows of weight, all of them valid
    second: tl.tensor,  # offset from a row to its partner
    NUM_INPUTS: tl.constexpr,
    PAIRED: tl.constexpr,
    PREFETCH: tl.constexpr,  # addresses in each row
) -> None:
    """Prefetches the beginning of some rows, and of their partners, into the L2 cache."""
    if PREFETCH > 0:
        LINE: tl.constexpr = LINE_BYTES // (p_w.dtype.element_ty.primitive_bitwidth // 8)
        o_line = tl.minimum(tl.arange(0, PREFETCH) * LINE, NUM_INPUTS - 1)
        prefetch(p_w + o_line[None, :])
        if PAIRED:
            prefetch(p_w + second + o_line[None, :])


@triton.jit
def product(
    x: tl.tensor,
    norm: tl.tensor,  # [NUM_INPUTS] or None
    p_x: tl.tensor,  # [ROWS, 1] rows of x
    p_w: tl.tensor,  # [BLOCK_N, 1] rows of weight
    second: tl.tensor,  # PAIRED: offset from a row of weight to its partner
    eps: tl.tensor,
    m_r: tl.tensor,  # [ROWS] which rows exist
    m_n: tl.tensor,  # [BLOCK_N] which rows of weight exist
    NUM_INPUTS: tl.constexpr,
    PAIRED: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """[ROWS, BLOCK_N] products in fp32 with the rows of weight, and with their partners."""
    b_square = tl.zeros([ROWS, BLOCK_K], tl.float32)
    b_rms = tl.full([ROWS], 1.0, tl.float32)
    if NORM_FIRST:
        for i_k in range(0, NUM_INPUTS, BLOCK_K):
            o_k = i_k + tl.arange(0, BLOCK_K)
            m_x = m_r[:, None] & (o_k < NUM_INPUTS)[None, :]
            b_x = tl.load(p_x + o_k[None, :], mask=m_x, other=0.0).to(tl.float32)
            b_square += b_x * b_x
        b_rms = tl.rsqrt(tl.sum(b_square, 1) / NUM_INPUTS + eps)

    if TENSOR_CORES:
        b_y = tl.zeros([ROWS, BLOCK_N], tl.float32)
        b_up = tl.zeros([ROWS, BLOCK_N], tl.float32)
    else:
        b_y = tl.zeros([ROWS, BLOCK_N, BLOCK_K], tl.float32)
        b_up = tl.zeros([ROWS, BLOCK_N, BLOCK_K], tl.float32)
    for i_k in tl.range(0, NUM_INPUTS, BLOCK_K, num_stages=NUM_STAGES):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < NUM_INPUTS
        m_w = m_n[:, None] & m_k[None, :]
        b_x = tl.load(p_x + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_w + o_k[None, :], mask=m_w, other=0.0)
        if norm is not None:
            b_wide = b_x.to(tl.float32)
            if not NORM_FIRST:
                b_square += b_wide * b_wide
            b_scale = tl.load(norm + o_k, mask=m_k, other=0.0).to(tl.float32)
            b_wide = b_wide * b_rms[:, None] * b_scale[None, :]
        if TENSOR_CORES:
            if norm is not None:
                b_x = b_wide.to(x.dtype.element_ty)
            b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")
            if PAIRED:
                b_w = tl.load(p_w + second + o_k[None, :], mask=m_w, other=0.0)
                b_up = tl.dot(b_x, tl.trans(b_w), b_up, input_precision="ieee")
        else:
            if norm is None:
                b_wide = b_x.to(tl.float32)
            b_y += b_wide[:, None, :] * b_w.to(tl.float32)[None, :, :]
            if PAIRED:
                b_w = tl.load(p_w + second + o_k[None, :], mask=m_w, other=0.0)
                b_up += b_wide[:, None, :] * b_w.to(tl.float32)[None, :, :]

    if not TENSOR_CORES:
        b_y, b_up = tl.sum(b_y, 2), tl.sum(b_up, 2)
    if norm is not None and not NORM_FIRST:
        b_rms = tl.rsqrt(tl.sum(b_square, 1) / NUM_INPUTS + eps)[:, None]
        b_y, b_up = b_y * b_rms, b_up * b_rms
    return b_y, b_up


@triton.jit(do_not_specialize=["num_rows"])
def _projection_kernel(
    x: tl.tensor,  # [num_rows, NUM_INPUTS]
    norm: tl.tensor,  # [NUM_INPUTS] or None
    weight: tl.tensor,  # [NUM_OUTPUTS, NUM_INPUTS], [2 * NUM_OUTPUTS, NUM_INPUTS] if GATED
    bias: tl.tensor,  # [NUM_OUTPUTS], [2 * NUM_OUTPUTS] if GATED, or None
    residual: tl.tensor,  # [num_rows, NUM_OUTPUTS] or None
    out: tl.tensor,  # [num_rows, NUM_OUTPUTS]
    eps: tl.tensor,
    num_rows: tl.tensor,
    stride_x: tl.tensor,
    stride_weight: tl.tensor,
    stride_residual: tl.tensor,
    stride_out: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,  # of a gated product
    TENSOR_CORES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,  # at least num_rows
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,  # addresses in each row of weight to prefetch before the wait
    OVERLAP: tl.constexpr,
) -> None:
    allow_next_kernel(OVERLAP)
    o_r = tl.arange(0, ROWS)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_r, m_n = o_r < num_rows, o_n < NUM_OUTPUTS
    p_x = x + o_r[:, None] * stride_x
    p_w = weight + o_n.to(tl.int64)[:, None] * stride_weight
    up = NUM_OUTPUTS * stride_weight  # offset from a gate's row to that of its partner
    if OVERLAP:
        o_row = tl.minimum(o_n, NUM_OUTPUTS - 1).to(tl.int64)
        p_row = weight + o_row[:, None] * stride_weight
        prefetch_weights(p_row, up, NUM_INPUTS, GATED, PREFETCH)
        if tl.program_id(0) == 0:  # vectors that all programs read
            if norm is not None:
                prefetch_vector(norm, NUM_INPUTS)
            if bias is not None:
                prefetch_vector(bias, 2 * NUM_OUTPUTS if GATED else NUM_OUTPUTS)
    wait_for_previous_kernel(OVERLAP)
    b_y, b_up = product(
        x, norm, p_x, p_w, up, eps, m_r, m_n, NUM_INPUTS, GATED, TENSOR_CORES, NORM_FIRST,
        ROWS, BLOCK_N, BLOCK_K, NUM_STAGES,
    )  # fmt: skip
    if bias is not None:
        b_y += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if bias is not None:
            b_up += tl.load(bias + NUM_OUTPUTS + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        b_y = gated_activation(b_y, b_up, GELU)
    m_y = m_r[:, None] & m_n[None, :]
    if residual is not None:
        p_residual = residual + o_r[:, None] * stride_residual + o_n[None, :]
        b_y += tl.load(p_residual, mask=m_y, other=0.0).to(tl.float32)
    p_out = out + o_r[:, None] * stride_out + o_n[None, :]
    tl.store(p_out, b_y.to(out.dtype.element_ty), mask=m_y)


@dataclass(frozen=True)
class ProjectionTiles:
    """How a product is tiled: by its shape alone, so that equal shapes sum in the same order."""

    rows: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    tensor_cores: bool

    def prefetch(self, num_inputs: int, itemsize: int, *, gated: bool) -> int:
        """Addresses in each row of weight that a program prefetches before it waits."""
        rows = self.block_n * (2 if gated else 1)
        most = next_power_of_2(ceil_div(num_inputs * itemsize, LINE_BYTES.value))
        return min(PREFETCH_BYTES // (rows * LINE_BYTES.value), most)


def projection_tiles(
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    *,
    gated: bool,
    normed: bool,
    dtype: torch.dtype,
) -> ProjectionTiles:
    """Tiles with many bytes of weight in flight, and enough programs for the device.

    With other tiles of this size the sm_100 compiler spills a register or two.
    """
    widest = next_power_of_2(num_inputs)
    wide_dtype = dtype == torch.float32
    if num_rows <= _PLAIN_ROWS:
        rows = next_power_of_2(max(1, num_rows))
        block_k, stages = (256, 6) if rows == 4 else (256 if wide_dtype else 512, 4)
        wanted = next_power_of_2(num_outputs // (2 * _PROGRAMS) + 1) // 2
        most = 16 // rows  # registers hold the sums, and weights in flight
        if gated:
            most //= 2
        if wide_dtype and (gated or rows == 2):
            most //= 2
        block_n = max(min(wanted, most), 4)
        return ProjectionTiles(rows, block_n, min(block_k, widest), 4, stages, False)
    norm_first = normed and dtype == torch.float16
    block_n = 16 if norm_first or num_outputs >= 16 * _PROGRAMS // 2 else 8
    block_k, stages = (128, 4) if gated or normed else (256, 3)
    if wide_dtype:
        block_k, stages = 64, 2
    return ProjectionTiles(MAX_ROWS, block_n, max(16, min(block_k, widest)), 4, stages, True)


def projection_launch(
    x: Tensor,  # [num_rows, num_inputs]
    weight: LinearWeight,  # [num_outputs, num_inputs], [2 * num_outputs, num_inputs] if gated
    *,
    out: Tensor,  # [num_rows, num_outputs]
    residual: Tensor | None = None,  # [num_rows, num_outputs]; may be `out` itself
    norm: Tensor | None = None,  # [num_inputs]
    eps: float = 0.0,
    gated: bool = False,
    gelu: bool = False,
) -> Launch:
    """The launch of one product of at most `MAX_ROWS` rows; its arguments are not checked."""
    num_rows, num_inputs = x.shape
    num_outputs = out.shape[1]
    tiles = projection_tiles(
        num_rows,
        num_outputs,
        num_inputs,
        gated=gated,
        normed=norm is not None,
        dtype=x.dtype,
    )
    return Launch(
        kernel=_projection_kernel,
        grid=(ceil_div(num_outputs, tiles.block_n) if num_rows else 0,),
        args={
            "x": x,
            "norm": norm,
            "weight": weight.matrix,
            "bias": weight.bias,
            "residual": residual,
            "out": out,
            "eps": eps,
            "num_rows": num_rows,
            "stride_x": x.stride(0),
            "stride_weight": weight.matrix.stride(0),
            "stride_residual": 0 if residual is None else residual.stride(0),
            "stride_out": out.stride(0),
            "NUM_INPUTS": num_inputs,
            "NUM_OUTPUTS": num_outputs,
            "GATED": gated,
            "GELU": gelu,
            "TENSOR_CORES": tiles.tensor_cores,
            "NORM_FIRST": norm is not None and tiles.tensor_cores and x.dtype == torch.float16,
            "ROWS": tiles.rows,
            "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k,
            "NUM_STAGES": tiles.num_stages,
            "PREFETCH": tiles.prefetch(num_inputs, weight.dtype.itemsize, gated=gated),
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        overlap=overlapping(num_rows),
    )
