"""The first half of an attention block in one launch: norm, projection, rotation, store into pages.

qkv = rms_norm(x) Wᵀ + bias, q <- rotate(q), pages[page[n], offset[n]] <- rotate(k[n]), v[n]

A program computes elements i and i + head_dim / 2 of a head, which the rotation combines, as a
gated product computes a gate and its partner. So the rotation needs no launch of its own. For at
most 16 rows, without a norm of heads (Qwen3); other passes take two launches.

Twin: `rsd_kernels.qkv.twin`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.ahead import next_weight_args
from rsd_kernels.grouped.operand import tiles_of, weight_args
from rsd_kernels.grouped.product import grouped_product, partners
from rsd_kernels.grouped.weight import DeviceWeight
from rsd_kernels.launch import Launch, check_dtype, overlapping
from rsd_kernels.linear.kernel import prefetch_weights, product
from rsd_kernels.linear.launchers import check_norm, check_product, norm_linear
from rsd_kernels.linear.tiles import MAX_ROWS
from rsd_kernels.overlap import (
    allow_next_kernel,
    prefetch_ahead,
    prefetch_vector,
    wait_for_previous_kernel,
)
from rsd_kernels.rope.kernel import check_arguments, rope_kv_write


@triton.jit(do_not_specialize=["num_rows", "ahead_lines"])
def _qkv_projection_kernel(
    x: tl.tensor,  # [num_rows, NUM_INPUTS]
    norm: tl.tensor,  # [NUM_INPUTS] or None
    weight: tl.tensor,  # [heads * 2 * HALF, NUM_INPUTS], heads = NUM_Q_HEADS + 2 * NUM_KV_HEADS;
    # or a tuple, see FORMAT
    bias: tl.tensor,  # [heads * 2 * HALF] or None
    out: tl.tensor,  # [num_rows, heads, 2 * HALF]; only q is written
    k_pages: tl.tensor,  # [num_pages, tokens_per_page, NUM_KV_HEADS, 2 * HALF]
    v_pages: tl.tensor,  # [num_pages, tokens_per_page, NUM_KV_HEADS, 2 * HALF]
    page: tl.tensor,  # [num_rows]
    offset: tl.tensor,  # [num_rows]
    cos: tl.tensor,  # [positions, 2 * HALF] fp32, contiguous
    sin: tl.tensor,  # [positions, 2 * HALF] fp32, contiguous
    position: tl.tensor,  # [num_rows] or None
    ahead: tl.tensor,  # the matrix that the next product reads
    eps: tl.tensor,
    num_rows: tl.tensor,
    ahead_lines: tl.tensor,  # of it, to prefetch
    stride_x: tl.tensor,
    stride_weight: tl.tensor,
    stride_row: tl.tensor,
    stride_head: tl.tensor,
    stride_k_page: tl.tensor,
    stride_k_token: tl.tensor,
    stride_k_head: tl.tensor,
    stride_v_page: tl.tensor,
    stride_v_token: tl.tensor,
    stride_v_head: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    FORMAT: tl.constexpr,  # of weight, see `rsd_kernels.grouped.operand`; None: a plain matrix
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,  # at least num_rows
    BLOCK_N: tl.constexpr,  # pairs per program
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,  # addresses in each row of weight to prefetch before the wait
    SCHEDULED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    allow_next_kernel(OVERLAP)
    NUM_HEADS: tl.constexpr = NUM_Q_HEADS + 2 * NUM_KV_HEADS
    o_r = tl.arange(0, ROWS)
    o_pair = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_r, m_n = o_r < num_rows, o_pair < NUM_HEADS * HALF
    o_pair = tl.minimum(o_pair, NUM_HEADS * HALF - 1)
    o_head, o_col = o_pair // HALF, o_pair % HALF
    o_low = o_head * (2 * HALF) + o_col
    p_x = x + o_r[:, None] * stride_x
    values = weight if FORMAT is None else weight.stored
    WIDTH: tl.constexpr = NUM_INPUTS if FORMAT is None else FORMAT.row_width
    p_w = values + o_low.to(tl.int64)[:, None] * stride_weight
    second = HALF * stride_weight
    if OVERLAP:
        prefetch_weights(p_w, second, WIDTH, True, PREFETCH)
        if tl.program_id(0) == 0:  # vectors that all programs read
            if norm is not None:
                prefetch_vector(norm, NUM_INPUTS)
            if bias is not None:
                prefetch_vector(bias, NUM_HEADS * 2 * HALF)
    if not SCHEDULED:
        wait_for_previous_kernel(OVERLAP)

    b_page = tl.load(page + o_r, mask=m_r, other=-1).to(tl.int64)
    b_offset = tl.load(offset + o_r, mask=m_r, other=0)
    m_kept = b_page >= 0  # the position of padding may be anything
    b_angle = o_r if position is None else tl.load(position + o_r, mask=m_kept, other=0)
    p_angle = b_angle.to(tl.int64)[:, None] * (2 * HALF) + o_col[None, :]
    m_angle = m_kept[:, None] & m_n[None, :]
    b_cos_low = tl.load(cos + p_angle, mask=m_angle, other=0.0)
    b_cos_high = tl.load(cos + p_angle + HALF, mask=m_angle, other=0.0)
    b_sin_low = tl.load(sin + p_angle, mask=m_angle, other=0.0)
    b_sin_high = tl.load(sin + p_angle + HALF, mask=m_angle, other=0.0)
    if SCHEDULED:
        wait_for_previous_kernel(OVERLAP)

    if FORMAT is None:
        b_low, b_high = product(
            x, norm, p_x, p_w, second, eps, m_r, m_n, NUM_INPUTS, True, TENSOR_CORES, NORM_FIRST,
            ROWS, BLOCK_N, BLOCK_K, NUM_STAGES,
        )  # fmt: skip
    else:
        o_w = tl.arange(0, 2 * BLOCK_N)  # low elements, then their partners
        o_first = tl.program_id(0) * BLOCK_N + o_w % BLOCK_N
        o_row = o_first // HALF * (2 * HALF) + o_first % HALF + o_w // BLOCK_N * HALF
        b_y = grouped_product(
            norm, p_x, weight, stride_weight, o_row, eps, m_r, o_first < NUM_HEADS * HALF,
            NUM_INPUTS, FORMAT, NORM_FIRST, ROWS, 2 * BLOCK_N, BLOCK_K, NUM_STAGES,
        )  # fmt: skip
        b_low, b_high = partners(b_y, ROWS, BLOCK_N)
    if bias is not None:
        b_low += tl.load(bias + o_low, mask=m_n, other=0.0).to(tl.float32)[None, :]
        b_high += tl.load(bias + o_low + HALF, mask=m_n, other=0.0).to(tl.float32)[None, :]
    # Rounded before the rotation, as in two launches.
    b_low = b_low.to(out.dtype.element_ty).to(tl.float32)
    b_high = b_high.to(out.dtype.element_ty).to(tl.float32)
    m_rotated = (o_head < NUM_Q_HEADS + NUM_KV_HEADS)[None, :]
    b_new_low = tl.where(m_rotated, b_low * b_cos_low + b_high * b_sin_low, b_low)
    b_new_high = tl.where(m_rotated, b_high * b_cos_high + b_low * b_sin_high, b_high)
    b_new_low = b_new_low.to(out.dtype.element_ty)
    b_new_high = b_new_high.to(out.dtype.element_ty)

    m_q = m_angle & (o_head < NUM_Q_HEADS)[None, :]
    p_q = out + o_r[:, None] * stride_row + (o_head * stride_head + o_col)[None, :]
    tl.store(p_q, b_new_low, mask=m_q)
    tl.store(p_q + HALF, b_new_high, mask=m_q)
    i_k, i_v = o_head - NUM_Q_HEADS, o_head - NUM_Q_HEADS - NUM_KV_HEADS
    m_k = m_angle & ((i_k >= 0) & (i_v < 0))[None, :]
    p_k = k_pages + (b_page * stride_k_page + b_offset * stride_k_token)[:, None]
    p_k += (i_k * stride_k_head + o_col)[None, :]
    tl.store(p_k, b_new_low, mask=m_k)
    tl.store(p_k + HALF, b_new_high, mask=m_k)
    m_v = m_angle & (i_v >= 0)[None, :]
    p_v = v_pages + (b_page * stride_v_page + b_offset * stride_v_token)[:, None]
    p_v += (i_v * stride_v_head + o_col)[None, :]
    tl.store(p_v, b_new_low, mask=m_v)
    tl.store(p_v + HALF, b_new_high, mask=m_v)
    prefetch_ahead(ahead, ahead_lines, tl.program_id(0), tl.num_programs(0))


def qkv_projection(
    x: Tensor,  # [n, K]
    norm: Tensor | None,  # [K]; None: x is not normed
    eps: float,  # of this norm and of those of heads
    weight: DeviceWeight,  # [heads * head_dim, K] q, k, v
    heads: Tensor,  # [n, heads, head_dim] rows contiguous; q ends up in it
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [n] int32; rows with a negative page are padding
    offset: Tensor,  # [n] int32
    cos: Tensor,  # [n or num_positions, head_dim] fp32
    sin: Tensor,  # [n or num_positions, head_dim] fp32
    *,
    position: Tensor | None = None,  # [n] int32: row n takes this row of cos and sin; None: row n
    q_norm: Tensor | None = None,  # [head_dim]
    k_norm: Tensor | None = None,  # [head_dim]
    normed: Tensor,  # [n, K] scratch
    scheduled: bool = False,
) -> None:
    """`norm_linear`, then `rope_kv_write`: one launch for up to 16 rows without norms of heads.

    Afterwards `normed`, k and v in `heads`, and q of padding are undefined.

    scheduled: as in `rope_kv_write`.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device; with
            RSD_DEBUG_KERNELS=1 also a page, offset or position that is out of range.
    """
    qkv = heads.view(x.shape[0], heads.shape[1] * heads.shape[2])
    if x.shape[0] > MAX_ROWS or q_norm is not None:
        norm_linear(x, norm, eps, weight, normed=normed, out=qkv)
        rope_kv_write(
            heads, k_pages, v_pages, page, offset, cos, sin,
            position=position, q_norm=q_norm, k_norm=k_norm, eps=eps, scheduled=scheduled,
        )  # fmt: skip
        return
    check_product(x, weight, out=qkv, num_outputs=qkv.shape[1])
    check_norm(x, norm, normed)
    check_dtype("heads", heads, x.dtype)
    check_arguments(
        heads, k_pages, v_pages, page, offset, cos, sin,
        position=position, q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip
    qkv_projection_launch(
        x, norm, eps, weight, heads, k_pages, v_pages, page, offset, cos, sin,
        position=position, scheduled=scheduled,
    ).run()  # fmt: skip


def qkv_projection_launch(
    x: Tensor,  # [num_rows, num_inputs]
    norm: Tensor | None,  # [num_inputs]
    eps: float,
    weight: DeviceWeight,  # [heads * head_dim, num_inputs]
    heads: Tensor,  # [num_rows, heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [num_rows] int32
    offset: Tensor,  # [num_rows] int32
    cos: Tensor,  # [num_rows or num_positions, head_dim] fp32
    sin: Tensor,  # [num_rows or num_positions, head_dim] fp32
    *,
    position: Tensor | None,  # [num_rows] int32
    scheduled: bool = False,
) -> Launch:
    """The launch for at most `MAX_ROWS` rows; its arguments are not checked."""
    num_rows, num_inputs = x.shape
    num_heads, head_dim = heads.shape[1:]
    num_kv_heads, half = k_pages.shape[2], head_dim // 2
    tiles = tiles_of(
        weight, num_rows, num_heads * half, gated=True, normed=norm is not None, dtype=x.dtype
    )
    return Launch(
        kernel=_qkv_projection_kernel,
        grid=(tiles.num_tiles if num_rows else 0,),
        args={
            "x": x,
            "norm": norm,
            **weight_args(weight),
            "bias": weight.bias,
            "out": heads,
            "k_pages": k_pages,
            "v_pages": v_pages,
            "page": page,
            "offset": offset,
            "cos": cos,
            "sin": sin,
            "position": position,
            **next_weight_args(weight),
            "eps": eps,
            "num_rows": num_rows,
            "stride_x": x.stride(0),
            "stride_row": heads.stride(0),
            "stride_head": heads.stride(1),
            "stride_k_page": k_pages.stride(0),
            "stride_k_token": k_pages.stride(1),
            "stride_k_head": k_pages.stride(2),
            "stride_v_page": v_pages.stride(0),
            "stride_v_token": v_pages.stride(1),
            "stride_v_head": v_pages.stride(2),
            "NUM_INPUTS": num_inputs,
            "NUM_Q_HEADS": num_heads - 2 * num_kv_heads,
            "NUM_KV_HEADS": num_kv_heads,
            "HALF": half,
            "TENSOR_CORES": tiles.tensor_cores,
            "NORM_FIRST": norm is not None and tiles.tensor_cores and x.dtype == torch.float16,
            "ROWS": tiles.rows,
            "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k,
            "NUM_STAGES": tiles.num_stages,
            "PREFETCH": tiles.prefetch(weight.stored.shape[1], weight.stored.itemsize, gated=True),
            "SCHEDULED": scheduled,
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        max_registers=tiles.max_registers if x.dtype.itemsize == 2 else None,
        overlap=overlapping(num_rows),
    )
