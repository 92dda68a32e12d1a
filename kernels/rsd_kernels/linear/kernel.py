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

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.activation.kernel import gated as gated_activation
from rsd_kernels.ahead import next_weight_args
from rsd_kernels.grouped.operand import tiles_of, weight_args
from rsd_kernels.grouped.product import grouped_product, partners
from rsd_kernels.grouped.weight import DeviceWeight
from rsd_kernels.launch import Launch, multiprocessors, overlapping
from rsd_kernels.norm.kernel import inverse_rms
from rsd_kernels.overlap import (
    LINE_BYTES,
    allow_next_kernel,
    prefetch,
    prefetch_ahead,
    prefetch_vector,
    wait_for_previous_kernel,
)


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
    if TENSOR_CORES:
        b_square = tl.zeros([ROWS, BLOCK_K], tl.float32)
    else:
        b_square = tl.zeros([ROWS, 1, BLOCK_K], tl.float32)
    b_rms = tl.full([ROWS], 1.0, tl.float32)
    if NORM_FIRST:
        b_rms = inverse_rms(p_x, eps, m_r, NUM_INPUTS, ROWS, BLOCK_K)

    if TENSOR_CORES:
        b_y = tl.zeros([ROWS, BLOCK_N], tl.float32)
        b_up = tl.zeros([ROWS, BLOCK_N], tl.float32)
    else:
        b_y = tl.zeros([ROWS, BLOCK_N, BLOCK_K], tl.float32)
        b_up = tl.zeros([ROWS, BLOCK_N, BLOCK_K], tl.float32)
    for i_k in tl.range(0, NUM_INPUTS, BLOCK_K, num_stages=NUM_STAGES):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < NUM_INPUTS
        if TENSOR_CORES:
            m_w = m_n[:, None] & m_k[None, :]
            b_x = tl.load(p_x + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_w + o_k[None, :], mask=m_w, other=0.0)
            if norm is not None:
                b_wide = b_x.to(tl.float32)
                if not NORM_FIRST:
                    b_square += b_wide * b_wide
                b_scale = tl.load(norm + o_k, mask=m_k, other=0.0).to(tl.float32)
                b_wide = b_wide * b_rms[:, None] * b_scale[None, :]
                b_x = b_wide.to(x.dtype.element_ty)
            b_y = tl.dot(b_x, tl.trans(b_w), b_y, input_precision="ieee")
            if PAIRED:
                b_w = tl.load(p_w + second + o_k[None, :], mask=m_w, other=0.0)
                b_up = tl.dot(b_x, tl.trans(b_w), b_up, input_precision="ieee")
        else:
            # Loaded in three dimensions, so that threads multiply what they load.
            o_3 = o_k[None, None, :]
            m_3 = m_k[None, None, :]
            m_x = m_r[:, None, None] & m_3
            m_w = m_n[None, :, None] & m_3
            b_x = tl.load(p_x[:, None, :] + o_3, mask=m_x, other=0.0).to(tl.float32)
            b_w = tl.load(p_w[None, :, :] + o_3, mask=m_w, other=0.0).to(tl.float32)
            if norm is not None:
                b_square += b_x * b_x
                b_x *= tl.load(norm + o_3, mask=m_3, other=0.0).to(tl.float32)
            b_y += b_x * b_w
            if PAIRED:
                b_w = tl.load(p_w[None, :, :] + (second + o_3), mask=m_w, other=0.0).to(tl.float32)
                b_up += b_x * b_w

    if not TENSOR_CORES:
        b_y, b_up = tl.sum(b_y, 2), tl.sum(b_up, 2)
    if norm is not None and not NORM_FIRST:
        if TENSOR_CORES:
            b_rms = tl.rsqrt(tl.sum(b_square, 1) / NUM_INPUTS + eps)[:, None]
        else:
            b_rms = tl.rsqrt(tl.sum(b_square, 2) / NUM_INPUTS + eps)
        b_y, b_up = b_y * b_rms, b_up * b_rms
    return b_y, b_up


@triton.jit
def multiply_tile(
    i_tile: tl.tensor,
    x: tl.tensor,
    norm: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    num_rows: tl.tensor,
    stride_x: tl.tensor,
    stride_weight: tl.tensor,
    stride_residual: tl.tensor,
    stride_out: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    FORMAT: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> None:
    """Computes and stores BLOCK_N outputs of all rows; arguments as for the kernel."""
    o_r, o_n = tl.arange(0, ROWS), i_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m_r, m_n = o_r < num_rows, o_n < NUM_OUTPUTS
    p_x = x + o_r[:, None] * stride_x
    if FORMAT is None:
        p_w = weight + o_n.to(tl.int64)[:, None] * stride_weight
        up = NUM_OUTPUTS * stride_weight  # offset from a gate's row to that of its partner
        b_y, b_up = product(
            x, norm, p_x, p_w, up, eps, m_r, m_n, NUM_INPUTS, GATED, TENSOR_CORES, NORM_FIRST,
            ROWS, BLOCK_N, BLOCK_K, NUM_STAGES,
        )  # fmt: skip
    else:
        PER: tl.constexpr = 2 if GATED else 1
        o_w = tl.arange(0, PER * BLOCK_N)  # gates, then their partners
        o_gate = i_tile * BLOCK_N + o_w % BLOCK_N
        b_y = grouped_product(
            norm, p_x, weight, stride_weight, o_gate + o_w // BLOCK_N * NUM_OUTPUTS, eps, m_r,
            o_gate < NUM_OUTPUTS, NUM_INPUTS, FORMAT, NORM_FIRST, ROWS, PER * BLOCK_N, BLOCK_K,
            NUM_STAGES,
        )  # fmt: skip
        if GATED:
            b_y, b_up = partners(b_y, ROWS, BLOCK_N)
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


@triton.jit(do_not_specialize=["num_rows", "ahead_lines"])
def _projection_kernel(
    x: tl.tensor,  # [num_rows, NUM_INPUTS]
    norm: tl.tensor,  # [NUM_INPUTS] or None
    weight: tl.tensor,  # [NUM_OUTPUTS, NUM_INPUTS], [2 * NUM_OUTPUTS, NUM_INPUTS] if GATED; or
    # a tuple, see FORMAT
    bias: tl.tensor,  # [NUM_OUTPUTS], [2 * NUM_OUTPUTS] if GATED, or None
    residual: tl.tensor,  # [num_rows, NUM_OUTPUTS] or None
    out: tl.tensor,  # [num_rows, NUM_OUTPUTS]
    ahead: tl.tensor,  # the matrix that the next product reads
    eps: tl.tensor,
    num_rows: tl.tensor,
    ahead_lines: tl.tensor,  # of it, to prefetch
    stride_x: tl.tensor,
    stride_weight: tl.tensor,
    stride_residual: tl.tensor,
    stride_out: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    FORMAT: tl.constexpr,  # of weight, see `rsd_kernels.grouped.operand`; None: a plain matrix
    GATED: tl.constexpr,
    GELU: tl.constexpr,  # of a gated product
    TENSOR_CORES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,  # at least num_rows
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,  # there are fewer programs than tiles
    PREFETCH: tl.constexpr,  # addresses in each row of weight to prefetch before the wait
    OVERLAP: tl.constexpr,
) -> None:
    i_first = tl.program_id(0)
    if not PERSISTENT:
        allow_next_kernel(OVERLAP)
    if OVERLAP:
        o_row = tl.minimum(i_first * BLOCK_N + tl.arange(0, BLOCK_N), NUM_OUTPUTS - 1)
        values = weight if FORMAT is None else weight.stored
        p_row = values + o_row.to(tl.int64)[:, None] * stride_weight
        WIDTH: tl.constexpr = NUM_INPUTS if FORMAT is None else FORMAT.row_width
        prefetch_weights(p_row, NUM_OUTPUTS * stride_weight, WIDTH, GATED, PREFETCH)
        if i_first == 0:  # vectors that all programs read
            if norm is not None:
                prefetch_vector(norm, NUM_INPUTS)
            if bias is not None:
                prefetch_vector(bias, 2 * NUM_OUTPUTS if GATED else NUM_OUTPUTS)
    wait_for_previous_kernel(OVERLAP)
    if PERSISTENT:
        NUM_TILES: tl.constexpr = tl.cdiv(NUM_OUTPUTS, BLOCK_N)
        step = tl.num_programs(0)
        # Flattened with the loop over inputs: a tile's first weights are on their way before the
        # sums of the tile before it are added up and stored.
        for i_tile in tl.range(i_first, NUM_TILES, step, flatten=True):
            # What the next kernel prefetches would be evicted again, were it much earlier.
            if i_tile >= NUM_TILES - step:
                allow_next_kernel(OVERLAP)
            multiply_tile(
                i_tile, x, norm, weight, bias, residual, out, eps, num_rows, stride_x,
                stride_weight, stride_residual, stride_out, NUM_INPUTS, NUM_OUTPUTS, FORMAT,
                GATED, GELU, TENSOR_CORES, NORM_FIRST, ROWS, BLOCK_N, BLOCK_K, NUM_STAGES,
            )  # fmt: skip
    else:
        multiply_tile(
            i_first, x, norm, weight, bias, residual, out, eps, num_rows, stride_x,
            stride_weight, stride_residual, stride_out, NUM_INPUTS, NUM_OUTPUTS, FORMAT,
            GATED, GELU, TENSOR_CORES, NORM_FIRST, ROWS, BLOCK_N, BLOCK_K, NUM_STAGES,
        )  # fmt: skip
    prefetch_ahead(ahead, ahead_lines, i_first, tl.num_programs(0))


def projection_launch(
    x: Tensor,  # [num_rows, num_inputs]
    weight: DeviceWeight,  # [num_outputs, num_inputs], [2 * num_outputs, num_inputs] if gated
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
    tiles = tiles_of(
        weight, num_rows, num_outputs, gated=gated, normed=norm is not None, dtype=x.dtype
    )
    return Launch(
        kernel=_projection_kernel,
        grid=(tiles.programs(multiprocessors()) if num_rows else 0,),
        args={
            "x": x,
            "norm": norm,
            **weight_args(weight),
            "bias": weight.bias,
            "residual": residual,
            "out": out,
            **next_weight_args(weight),
            "eps": eps,
            "num_rows": num_rows,
            "stride_x": x.stride(0),
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
            "PERSISTENT": tiles.persistent,
            "PREFETCH": tiles.prefetch(weight.stored.shape[1], weight.stored.itemsize, gated=gated),
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        max_registers=tiles.max_registers,
        overlap=overlapping(num_rows),
    )
