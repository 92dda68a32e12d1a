"""The product with a matrix in few bits, as a device function: the counterpart of that in
`rsd_kernels.linear.kernel` for plain weights.

All rows go by tensor cores. An H200 reads 9.6e12 values of 4 bits a second, and its lanes issue
2.9e13 instructions: three a value. Unpacked two at a time, and multiplied without widening, a value
takes 3.5 to 5 of them in the loop (7 with a norm, which every tile makes of its own x), however
many of the 16 rows there are. On plain cores one row would take about 5, and four would take 11.

The sums of a part of the inputs that shares a scale are scaled, not its values. Every row is summed
in the same order whatever rows are beside it, and whatever tile it is in.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from rsd_kernels.norm.kernel import inverse_rms


@triton.jit
def grouped_product(
    norm: tl.tensor,  # [NUM_INPUTS] or None
    p_x: tl.tensor,  # [ROWS, 1] rows of x
    weight: tl.tuple,  # of `rsd_kernels.grouped.operand`
    stride_weight: tl.tensor,  # from a row of its values to the next
    o_n: tl.tensor,  # [BLOCK_N] rows of weight
    eps: tl.tensor,
    m_r: tl.tensor,  # [ROWS] which rows exist
    m_n: tl.tensor,  # [BLOCK_N] which rows of weight exist
    NUM_INPUTS: tl.constexpr,
    FORMAT: tl.constexpr,  # of `rsd_kernels.grouped.operand`
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> tl.tensor:
    """[ROWS, BLOCK_N] products in fp32 with rows of weight."""
    SLICES: tl.constexpr = FORMAT.slices
    SLICE: tl.constexpr = BLOCK_K // SLICES  # inputs
    SHARING: tl.constexpr = FORMAT.sharing  # slices one after another with one scale
    WIDTH: tl.constexpr = SLICE  # elements of values in a step
    DTYPE: tl.constexpr = p_x.dtype.element_ty

    b_square = tl.zeros([ROWS, BLOCK_K // 8], tl.float32)
    b_rms = tl.full([ROWS], 1.0, tl.float32)
    if NORM_FIRST:
        b_rms = inverse_rms(p_x, eps, m_r, NUM_INPUTS, ROWS, BLOCK_K)
    b_y = tl.zeros([ROWS, BLOCK_N], tl.float32)
    p_w = weight.stored + o_n.to(tl.int64)[:, None] * stride_weight
    for i_k in tl.range(0, NUM_INPUTS, BLOCK_K, num_stages=NUM_STAGES):
        o_w = i_k // BLOCK_K * WIDTH + tl.arange(0, WIDTH)
        m_w = m_n[:, None] & (o_w < FORMAT.row_width)[None, :]
        b_w = tl.load(p_w + o_w[None, :], mask=m_w, other=0)
        if norm is not None and not NORM_FIRST:
            # Laid out once over all threads; as an operand every warp holds all of x.
            o_x = i_k + tl.arange(0, BLOCK_K)
            m_x = m_r[:, None] & (o_x < NUM_INPUTS)[None, :]
            b_wide = tl.load(p_x + o_x[None, :], mask=m_x, other=0.0).to(tl.float32)
            # Neighbours are one thread's, which adds them up at once: fewer registers.
            b_square += tl.sum(tl.reshape(b_wide * b_wide, [ROWS, BLOCK_K // 8, 8]), 2)
        for i_part in tl.static_range(SLICES // SHARING):
            i_group = (i_k + i_part * SHARING * SLICE) // FORMAT.group_size
            m_g = m_n & (i_group < NUM_INPUTS // FORMAT.group_size)  # a last line may have more
            b_zero = _zeros(weight, o_n, i_group, m_g, DTYPE, FORMAT)
            b_part = tl.zeros([ROWS, BLOCK_N], tl.float32)
            for i in tl.static_range(SHARING):
                o_k = i_k + (i_part * SHARING + i) * SLICE + tl.arange(0, SLICE)
                b_x = _slice_of_x(norm, p_x, weight, b_rms, o_k, m_r, NUM_INPUTS, NORM_FIRST)
                b_q = _slice_of_values(b_w, b_zero, i_part * SHARING + i, DTYPE, FORMAT)
                b_part = tl.dot(b_x, tl.trans(b_q), b_part, input_precision="ieee")
            p_scale = weight.scales + i_group * weight.stride_scales + o_n // FORMAT.scale_rows
            b_scale = tl.load(p_scale, mask=m_g, other=0.0).to(tl.float32) * _unit(DTYPE, FORMAT)
            b_y += b_part * b_scale[None, :]
    if norm is not None and not NORM_FIRST:
        b_y *= tl.rsqrt(tl.sum(b_square, 1) / NUM_INPUTS + eps)[:, None]
    return b_y


@triton.jit
def partners(
    b_y: tl.tensor,  # [ROWS, 2 * BLOCK_N]
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """[ROWS, BLOCK_N] the first half of each row, and the second."""
    return tl.split(tl.permute(tl.reshape(b_y, [ROWS, 2, BLOCK_N]), (0, 2, 1)))


@triton.jit
def _slice_of_x(
    norm: tl.tensor,
    p_x: tl.tensor,
    weight: tl.tuple,
    b_rms: tl.tensor,  # [ROWS]
    o_k: tl.tensor,  # [SLICE] columns of weight
    m_r: tl.tensor,
    NUM_INPUTS: tl.constexpr,
    NORM_FIRST: tl.constexpr,
) -> tl.tensor:
    """[ROWS, SLICE] what these columns multiply: x, or x times the norm's weight."""
    m_k = o_k < NUM_INPUTS
    if weight.order is not None:
        o_k = tl.load(weight.order + o_k, mask=m_k, other=0)
    b_x = tl.load(p_x + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
    if norm is not None:
        b_norm = tl.load(norm + o_k, mask=m_k, other=0.0)[None, :]
        if NORM_FIRST:
            b_wide = b_x.to(tl.float32) * b_rms[:, None] * b_norm.to(tl.float32)
            b_x = b_wide.to(b_x.dtype)
        else:
            b_x *= b_norm  # a product in fp32 that is rounded has the same bits
    return b_x


@triton.jit
def _zeros(
    weight: tl.tuple,
    o_n: tl.tensor,  # [BLOCK_N] rows of weight
    i_group: tl.tensor,
    m_g: tl.tensor,  # [BLOCK_N] which of them exist
    DTYPE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    """[BLOCK_N, 1] what values are less, in the unit of `_slice_of_values`."""
    if weight.zeros is None:
        b_zero = tl.full([1], 8 if FORMAT.kind == "int4" else 0, tl.int8)
    else:
        b_zero = tl.load(weight.zeros + i_group * weight.stride_zeros + o_n, mask=m_g, other=0)
    return (b_zero.to(tl.float32) * (1.0 / _unit(DTYPE, FORMAT))).to(DTYPE)[:, None]


@triton.constexpr_function
def _unit(dtype: tl.dtype, form: Any) -> float:
    """What 1 in `_slice_of_values` stands for: a power of two."""
    units = {"bf16": 2.0**6, "fp16": 2.0**9, "fp32": 1.0}
    return units[dtype.name] if form.kind == "int4" else 1.0


@triton.jit
def _slice_of_values(
    b_w: tl.tensor,  # [BLOCK_N, WIDTH] as they are stored
    b_zero: tl.tensor,  # [BLOCK_N, 1] or [1, 1]
    I_SLICE: tl.constexpr,
    DTYPE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    """[BLOCK_N, SLICE] of DTYPE: values less their zeros, exactly, in units of `_unit`."""
    if FORMAT.kind == "int4":
        b_q = from_int4(b_w, I_SLICE, DTYPE)
        if DTYPE.is_fp32():
            b_q -= b_zero
        else:
            # An integer as bits is the least float that many times.
            LARGE: tl.constexpr = 2.0**15 if DTYPE.is_fp16() else 2.0**127
            b_q = tl.fma(b_q, tl.full(b_q.shape, LARGE, DTYPE), tl.broadcast_to(-b_zero, b_q.shape))
    elif FORMAT.kind == "int8":
        b_q = b_w.to(DTYPE) - b_zero
    else:
        UNIT: tl.constexpr = 2.0**8 if DTYPE.is_fp16() else 2.0**120
        b_q = from_fp8(b_w, I_SLICE, DTYPE) * tl.full([1, 1], UNIT, DTYPE)
    return b_q


@triton.jit
def from_int4(b_w: tl.tensor, I_SLICE: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """Field I_SLICE of words; in 16 bits that many times the least float, whose bits are 1."""
    SHIFT: tl.constexpr = 4 * (I_SLICE // 2)
    ODD: tl.constexpr = 16 * (I_SLICE % 2)
    if DTYPE.is_fp32():
        b_q = ((b_w >> (SHIFT + ODD)) & 15).to(tl.float32)
    else:  # two at a time
        b_q = (b_w >> SHIFT) & 0x000F000F
        b_q = (b_q >> ODD).to(tl.int16).to(DTYPE, bitcast=True)
    return b_q


@triton.jit
def from_fp8(b_w: tl.tensor, I_SLICE: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """Field I_SLICE of words, but for a factor 2^8 (fp16) or 2^120: the difference of exponents.

    Bits of e4m3 are put where DTYPE has its sign, the low bits of its exponent and the high ones of
    its fraction, which is exact for small numbers too, and devices need not know e4m3. Its NaN,
    which no weight is, becomes 480.
    """
    SHIFT: tl.constexpr = 8 * (I_SLICE // 2)
    ODD: tl.constexpr = 16 * (I_SLICE % 2)
    if DTYPE.is_fp32():
        b_q = b_w >> (SHIFT + ODD)
        b_q = ((b_q & 0x80) << 24 | (b_q & 0x7F) << 20).to(tl.float32, bitcast=True)
    else:  # two at a time
        b_q = b_w << (8 - SHIFT)
        if DTYPE.is_fp16():
            b_q = b_q & -0x7FFF8000 | (b_q >> 1) & 0x3F803F80
        else:
            b_q = b_q & -0x7FFF8000 | (b_q >> 4) & 0x07F007F0
        b_q = (b_q >> ODD).to(tl.int16).to(DTYPE, bitcast=True)
    return b_q
