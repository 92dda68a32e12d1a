"""Hidden rows to rewards, for Triton kernels: final norm and reward head.

value head:     r = offset + scale sigmoid(w · h n / sqrt(mean(h²) + eps) + b)
two-class head: z = W2 relu(W1 norm(h) + b1) + b2, r = sigmoid(z1 - z0); a launch of its own leaves
                one partial sum of z for every block of inner units
ensemble:       see `reward.ensemble`

with h the hidden row at the end of a step and n the weight of the norm. Nothing of the size of h
is written. Twin: `rewards` in `rsd_kernels.reward.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import Launch, ceil_div, interpreting, next_power_of_2
from rsd_kernels.reward.heads import EnsembleHead, RewardHead, TwoClassHead, ValueHead

_TILE = 8192  # elements of hidden rows a program holds at a time
VALUE_WARPS = 16
INNER_BLOCK = 16  # inner units a program
_INNER_STEP = 128  # hidden columns a turn
_SUM_BLOCKS = tl.constexpr(64)  # partial sums added at a time


@triton.jit
def value_rewards(
    hidden: tl.tensor,
    stride_row: tl.tensor,
    o_row: tl.tensor,
    m_lane: tl.tensor,
    norm_weight: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> tl.tensor:
    b_square = tl.zeros((BLOCK_S, BLOCK_H), tl.float32)
    b_product = tl.zeros((BLOCK_S, BLOCK_H), tl.float32)
    p_row = hidden + o_row.to(tl.int64)[:, None] * stride_row
    for start in range(0, WIDTH, BLOCK_H):
        o_column = start + tl.arange(0, BLOCK_H)
        m_column = o_column < WIDTH
        b_n = tl.load(norm_weight + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_w = tl.load(weight + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_h = tl.load(
            p_row + o_column[None, :], mask=m_lane[:, None] & m_column[None, :], other=0.0
        ).to(tl.float32)
        b_square += b_h * b_h
        b_product += b_h * (b_n * b_w)[None, :]
    b_scale = tl.rsqrt(tl.sum(b_square, 1) / WIDTH + eps)
    b_score = tl.sum(b_product, 1) * b_scale + tl.load(bias).to(tl.float32)
    return offset + scale / (1.0 + tl.exp(-b_score))


@triton.jit
def _inner_kernel(
    hidden: tl.tensor,  # [N, WIDTH]
    last_row: tl.tensor,  # [S + 1] row of lane s is last_row[s + 1] - 1; not read without PACKED
    num_lanes: tl.tensor,  # [1] or not read without PACKED
    norm_weight: tl.tensor,  # [WIDTH]
    inner: tl.tensor,  # [num_inner, WIDTH]
    inner_bias: tl.tensor,  # [num_inner]
    classes: tl.tensor,  # [2, num_inner]
    scratch: tl.tensor,  # [blocks, max_lanes, 2] float32
    eps: tl.tensor,
    stride_row: tl.tensor,
    max_lanes: tl.tensor,
    num_inner: tl.tensor,
    WIDTH: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    i_block, i_lanes = tl.program_id(0), tl.program_id(1)
    b_lane = i_lanes * BLOCK_S + tl.arange(0, BLOCK_S)
    m_lane = b_lane < max_lanes
    o_row = b_lane
    if PACKED:
        m_lane = m_lane & (b_lane < tl.load(num_lanes))
        o_row = tl.maximum(tl.load(last_row + b_lane + 1, mask=m_lane, other=1) - 1, 0)
    o_unit = i_block * BLOCK_I + tl.arange(0, BLOCK_I)
    m_unit = o_unit < num_inner
    b_square = tl.zeros((BLOCK_S,), tl.float32)
    b_inner = tl.zeros((BLOCK_S, BLOCK_I), tl.float32)
    p_row = hidden + o_row.to(tl.int64)[:, None] * stride_row
    p_unit = inner + o_unit.to(tl.int64)[None, :] * WIDTH
    for start in range(0, WIDTH, BLOCK_H):
        o_column = start + tl.arange(0, BLOCK_H)
        m_column = o_column < WIDTH
        b_n = tl.load(norm_weight + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_h = tl.load(
            p_row + o_column[None, :], mask=m_lane[:, None] & m_column[None, :], other=0.0
        ).to(tl.float32)
        b_w = tl.load(
            p_unit + o_column[:, None], mask=m_column[:, None] & m_unit[None, :], other=0.0
        )
        b_square += tl.sum(b_h * b_h, 1)
        b_x = (b_h * b_n[None, :]).to(b_w.dtype)
        if UPCAST:
            b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
        b_inner = tl.dot(b_x, b_w, b_inner, input_precision="ieee")
    b_scale = tl.rsqrt(b_square / WIDTH + eps)
    b_b1 = tl.load(inner_bias + o_unit, mask=m_unit, other=0.0).to(tl.float32)
    b_inner = b_inner * b_scale[:, None] + b_b1[None, :]
    b_inner = tl.where(b_inner < 0.0, 0.0, b_inner)  # keeps NaN, which tl.maximum drops on a device
    b_c0 = tl.load(classes + o_unit, mask=m_unit, other=0.0).to(tl.float32)
    b_c1 = tl.load(classes + num_inner + o_unit, mask=m_unit, other=0.0).to(tl.float32)
    p_part = scratch + (i_block * max_lanes + b_lane) * 2
    tl.store(p_part, tl.sum(b_inner * b_c0[None, :], 1), mask=m_lane)
    tl.store(p_part + 1, tl.sum(b_inner * b_c1[None, :], 1), mask=m_lane)


@triton.jit
def class_rewards(
    scratch: tl.tensor,
    classes_bias: tl.tensor,
    b_lane: tl.tensor,
    m_lane: tl.tensor,
    max_lanes: tl.tensor,
    num_blocks: tl.tensor,
) -> tl.tensor:
    """Adds the partial sums, always in the same order."""
    b_zero = tl.zeros_like(b_lane).to(tl.float32) + tl.load(classes_bias).to(tl.float32)
    b_one = tl.zeros_like(b_lane).to(tl.float32) + tl.load(classes_bias + 1).to(tl.float32)
    first = 0
    while first < num_blocks:
        o_block = first + tl.arange(0, _SUM_BLOCKS)
        m_part = (o_block < num_blocks)[:, None] & m_lane[None, :]
        p_part = scratch + (o_block[:, None] * max_lanes + b_lane[None, :]) * 2
        b_zero += tl.sum(tl.load(p_part, mask=m_part, other=0.0), 0)
        b_one += tl.sum(tl.load(p_part + 1, mask=m_part, other=0.0), 0)
        first += _SUM_BLOCKS
    return 1.0 / (1.0 + tl.exp(b_zero - b_one))


def scratch_shape(head: RewardHead, num_seqs: int) -> tuple[int, int, int]:
    """Shape of the float32 scratch that scoring up to `num_seqs` rows takes."""
    if isinstance(head, EnsembleHead):
        return (head.inner.shape[0], num_seqs, 1)
    blocks = ceil_div(head.inner.shape[0], INNER_BLOCK) if isinstance(head, TwoClassHead) else 0
    return (blocks, num_seqs, 2)


def value_args(hidden: Tensor, head: ValueHead, lanes: int) -> dict[str, object]:
    width = hidden.shape[1]
    return {
        "hidden": hidden, "norm_weight": head.norm_weight, "weight": head.weight,
        "bias": head.bias, "eps": head.eps, "scale": head.scale, "offset": head.offset,
        "stride_row": hidden.stride(0), "WIDTH": width,
        "BLOCK_H": min(max(_TILE // lanes, 32), next_power_of_2(width)),
    }  # fmt: skip


def classes_args(head: TwoClassHead, scratch: Tensor) -> dict[str, object]:
    return {
        "scratch": scratch, "classes_bias": head.classes_bias,
        "num_blocks": ceil_div(head.inner.shape[0], INNER_BLOCK),
    }  # fmt: skip


def inner_launch(
    hidden: Tensor,
    head: TwoClassHead,
    scratch: Tensor,
    num_lanes: int,
    seq_start: Tensor | None,
    num_seqs: Tensor | None,
) -> Launch:
    lanes = min(64, max(16, next_power_of_2(max(num_lanes, 1))))
    args = {
        "hidden": hidden, "last_row": seq_start, "num_lanes": num_seqs,
        "norm_weight": head.norm_weight, "inner": head.inner, "inner_bias": head.inner_bias,
        "classes": head.classes, "scratch": scratch, "eps": head.eps,
        "stride_row": hidden.stride(0), "max_lanes": num_lanes,
        "num_inner": head.inner.shape[0], "WIDTH": hidden.shape[1],
        "PACKED": seq_start is not None, "UPCAST": interpreting(), "BLOCK_S": lanes,
        "BLOCK_I": INNER_BLOCK, "BLOCK_H": _INNER_STEP,
    }  # fmt: skip
    grid = (ceil_div(head.inner.shape[0], INNER_BLOCK), ceil_div(num_lanes, lanes))
    return Launch(_inner_kernel, grid, args, num_warps=4, num_stages=4)
