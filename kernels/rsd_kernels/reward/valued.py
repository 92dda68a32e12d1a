"""Hidden rows to rewards by a few classes that each have a value, for Triton kernels.

z = W norm(h) + b, p = softmax(z); r = sum of p_c value_c, or the value of the likeliest class

Twin: `rewards` in `rsd_kernels.reward.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import next_power_of_2
from rsd_kernels.reward.heads import ClassesHead

_WIDTH_STEP = 64  # hidden columns a turn
LEAST_LANES = 16  # of a matrix product
CLASSES_WARPS = 8


@triton.jit
def valued_rewards(
    hidden: tl.tensor,
    stride_row: tl.tensor,
    o_row: tl.tensor,
    m_lane: tl.tensor,
    norm_weight: tl.tensor,  # [WIDTH]
    weight: tl.tensor,  # [num_classes, WIDTH]
    bias: tl.tensor,  # [num_classes]
    values: tl.tensor,  # [num_classes] float32
    eps: tl.tensor,
    num_classes: tl.tensor,
    WIDTH: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> tl.tensor:
    b_square = tl.zeros((BLOCK_S,), tl.float32)
    b_score = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    o_class = tl.arange(0, BLOCK_C)
    m_class = o_class < num_classes
    p_row = hidden + o_row.to(tl.int64)[:, None] * stride_row
    p_class = weight + o_class.to(tl.int64)[None, :] * WIDTH
    for start in range(0, WIDTH, BLOCK_H):
        o_column = start + tl.arange(0, BLOCK_H)
        m_column = o_column < WIDTH
        b_n = tl.load(norm_weight + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_h = tl.load(
            p_row + o_column[None, :], mask=m_lane[:, None] & m_column[None, :], other=0.0
        ).to(tl.float32)
        b_w = tl.load(
            p_class + o_column[:, None], mask=m_column[:, None] & m_class[None, :], other=0.0
        ).to(tl.float32)
        b_square += tl.sum(b_h * b_h, 1)
        b_score = tl.dot(b_h * b_n[None, :], b_w, b_score, input_precision="ieee")
    b_scale = tl.rsqrt(b_square / WIDTH + eps)
    b_bias = tl.load(bias + o_class, mask=m_class, other=0.0).to(tl.float32)
    b_score = b_score * b_scale[:, None] + b_bias[None, :]
    b_score = tl.where(m_class[None, :], b_score, float("-inf"))
    b_top = tl.max(b_score, 1)
    b_e = tl.exp(b_score - b_top[:, None])  # NaN and infinity stay in the sum
    b_value = tl.load(values + o_class, mask=m_class, other=0.0)
    b_total = tl.sum(b_e, 1)
    b_reward = tl.sum(b_e * b_value[None, :], 1) / b_total
    if GREEDY:
        m_top = b_score == b_top[:, None]
        b_first = tl.min(tl.where(m_top, o_class[None, :], BLOCK_C), 1)
        m_first = o_class[None, :] == b_first[:, None]
        b_chosen = tl.sum(tl.where(m_first, b_value[None, :], 0.0), 1)
        b_reward = tl.where(b_total == b_total, b_chosen, b_reward)
    return b_reward


def valued_args(hidden: Tensor, head: ClassesHead) -> dict[str, object]:
    """Arguments of `valued_rewards` but the lanes."""
    num_classes = head.weight.shape[0]
    return {
        "hidden": hidden, "stride_row": hidden.stride(0), "norm_weight": head.norm_weight,
        "weight": head.weight, "bias": head.bias, "values": head.values, "eps": head.eps,
        "num_classes": num_classes, "WIDTH": hidden.shape[1], "GREEDY": head.greedy,
        "BLOCK_C": max(next_power_of_2(num_classes), LEAST_LANES), "BLOCK_H": _WIDTH_STEP,
    }  # fmt: skip
