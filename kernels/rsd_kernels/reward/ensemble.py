"""Hidden rows to rewards by an ensemble of heads, for Triton kernels.

r = mean over the heads of sigmoid(w3 · relu(W2 relu(W1 norm(h) + b1) + b2) + b3)

A program computes one head for some rows, all three layers, and leaves its sigmoid; a second launch
takes the mean. Twin: `rewards` in `rsd_kernels.reward.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import Launch, ceil_div, interpreting, next_power_of_2
from rsd_kernels.reward.heads import EnsembleHead

_INNER_STEP = 64  # hidden columns a turn
_SUM_HEADS = tl.constexpr(32)  # heads added at a time


@triton.jit
def _heads_kernel(
    hidden: tl.tensor,  # [N, WIDTH]
    last_row: tl.tensor,  # [S + 1] row of lane s is last_row[s + 1] - 1; not read without PACKED
    num_lanes: tl.tensor,  # [1] or not read without PACKED
    norm_weight: tl.tensor,  # [WIDTH]
    inner: tl.tensor,  # [E, WIDTH, UNITS]
    inner_bias: tl.tensor,  # [E, UNITS]
    middle: tl.tensor,  # [E, UNITS, UNITS]
    middle_bias: tl.tensor,  # [E, UNITS]
    out: tl.tensor,  # [E, UNITS, 1]
    out_bias: tl.tensor,  # [E, 1]
    scratch: tl.tensor,  # [E, max_lanes] float32
    eps: tl.tensor,
    stride_row: tl.tensor,
    max_lanes: tl.tensor,
    WIDTH: tl.constexpr,
    UNITS: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    i_head, i_lanes = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b_lane = i_lanes * BLOCK_S + tl.arange(0, BLOCK_S)
    m_lane = b_lane < max_lanes
    o_row = b_lane
    if PACKED:
        m_lane = m_lane & (b_lane < tl.load(num_lanes))
        o_row = tl.maximum(tl.load(last_row + b_lane + 1, mask=m_lane, other=1) - 1, 0)
    o_unit = tl.arange(0, BLOCK_U)
    m_unit = o_unit < UNITS
    b_square = tl.zeros((BLOCK_S,), tl.float32)
    b_unit = tl.zeros((BLOCK_S, BLOCK_U), tl.float32)
    p_row = hidden + o_row.to(tl.int64)[:, None] * stride_row
    p_inner = inner + i_head * WIDTH * UNITS + o_unit[None, :]
    for start in range(0, WIDTH, BLOCK_H):
        o_column = start + tl.arange(0, BLOCK_H)
        m_column = o_column < WIDTH
        b_n = tl.load(norm_weight + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_h = tl.load(
            p_row + o_column[None, :], mask=m_lane[:, None] & m_column[None, :], other=0.0
        ).to(tl.float32)
        b_w = tl.load(
            p_inner + o_column[:, None] * UNITS, mask=m_column[:, None] & m_unit[None, :], other=0.0
        )
        b_square += tl.sum(b_h * b_h, 1)
        b_x = (b_h * b_n[None, :]).to(b_w.dtype)
        if UPCAST:
            b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
        b_unit = tl.dot(b_x, b_w, b_unit, input_precision="ieee")
    b_scale = tl.rsqrt(b_square / WIDTH + eps)
    p_bias = i_head * UNITS + o_unit
    b_b1 = tl.load(inner_bias + p_bias, mask=m_unit, other=0.0).to(tl.float32)
    b_unit = b_unit * b_scale[:, None] + b_b1[None, :]
    b_unit = tl.where(b_unit < 0.0, 0.0, b_unit)  # keeps NaN, which tl.maximum drops on a device
    p_middle = middle + i_head * UNITS * UNITS + o_unit[:, None] * UNITS + o_unit[None, :]
    b_w2 = tl.load(p_middle, mask=m_unit[:, None] & m_unit[None, :], other=0.0)
    b_x2 = b_unit.to(b_w2.dtype)
    if UPCAST:
        b_x2, b_w2 = b_x2.to(tl.float32), b_w2.to(tl.float32)
    b_b2 = tl.load(middle_bias + p_bias, mask=m_unit, other=0.0).to(tl.float32)
    b_unit = tl.dot(b_x2, b_w2, input_precision="ieee") + b_b2[None, :]
    b_unit = tl.where(b_unit < 0.0, 0.0, b_unit)
    b_w3 = tl.load(out + p_bias, mask=m_unit, other=0.0).to(tl.float32)
    b_score = tl.sum(b_unit * b_w3[None, :], 1) + tl.load(out_bias + i_head).to(tl.float32)
    p_out = scratch + i_head * max_lanes + b_lane
    tl.store(p_out, 1.0 / (1.0 + tl.exp(-b_score)), mask=m_lane)


@triton.jit
def mean_rewards(
    scratch: tl.tensor,
    b_lane: tl.tensor,
    m_lane: tl.tensor,
    max_lanes: tl.tensor,
    num_heads: tl.tensor,
) -> tl.tensor:
    """The mean over the heads, always added in the same order."""
    b_sum = tl.zeros_like(b_lane).to(tl.float32)
    first = 0
    while first < num_heads:
        o_head = first + tl.arange(0, _SUM_HEADS)
        m_part = (o_head < num_heads)[:, None] & m_lane[None, :]
        p_part = scratch + o_head[:, None] * max_lanes + b_lane[None, :]
        b_sum += tl.sum(tl.load(p_part, mask=m_part, other=0.0), 0)
        first += _SUM_HEADS
    return b_sum / num_heads


def ensemble_args(head: EnsembleHead, scratch: Tensor) -> dict[str, object]:
    return {"scratch": scratch, "num_heads": head.inner.shape[0]}


def heads_launch(
    hidden: Tensor,
    head: EnsembleHead,
    scratch: Tensor,
    num_lanes: int,
    seq_start: Tensor | None,
    num_seqs: Tensor | None,
) -> Launch:
    lanes = min(64, max(16, next_power_of_2(max(num_lanes, 1))))
    num_heads, width, units = head.inner.shape
    args = {
        "hidden": hidden, "last_row": seq_start, "num_lanes": num_seqs,
        "norm_weight": head.norm_weight, "inner": head.inner, "inner_bias": head.inner_bias,
        "middle": head.middle, "middle_bias": head.middle_bias, "out": head.out,
        "out_bias": head.out_bias, "scratch": scratch, "eps": head.eps,
        "stride_row": hidden.stride(0), "max_lanes": num_lanes, "WIDTH": width, "UNITS": units,
        "PACKED": seq_start is not None, "UPCAST": interpreting(), "BLOCK_S": lanes,
        "BLOCK_U": max(16, next_power_of_2(units)), "BLOCK_H": _INNER_STEP,
    }  # fmt: skip
    grid = (num_heads, ceil_div(num_lanes, lanes))
    return Launch(_heads_kernel, grid, args, num_warps=8, num_stages=3)
