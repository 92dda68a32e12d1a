"""Reward and accept decision for stacks that keep their own state.

One launch with a head of one layer, two with the others, see `reward.scores`. Twin:
`reward_accept` in `rsd_kernels.reward.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import Launch, ceil_div, next_power_of_2
from rsd_kernels.policy.kernel import accepts
from rsd_kernels.reward.checks import check_head, check_hidden, check_policy, check_scratch
from rsd_kernels.reward.ensemble import ensemble_args, heads_launch, mean_rewards
from rsd_kernels.reward.heads import ClassesHead, EnsembleHead, RewardHead, ValueHead
from rsd_kernels.reward.scores import (
    VALUE_WARPS,
    class_rewards,
    classes_args,
    inner_launch,
    scratch_shape,
    value_args,
    value_rewards,
)
from rsd_kernels.reward.valued import CLASSES_WARPS, LEAST_LANES, valued_args, valued_rewards


@triton.jit
def _write(
    policy_kind: tl.tensor,
    policy_a: tl.tensor,
    policy_b: tl.tensor,
    uniform: tl.tensor,
    reward: tl.tensor,
    accept: tl.tensor,
    b_lane: tl.tensor,
    m_lane: tl.tensor,
    b_reward: tl.tensor,
) -> None:
    m_accept = accepts(
        tl.load(policy_kind + b_lane, mask=m_lane, other=0),
        tl.load(policy_a + b_lane, mask=m_lane, other=0.0),
        tl.load(policy_b + b_lane, mask=m_lane, other=0.0),
        b_reward,
        tl.load(uniform + b_lane, mask=m_lane, other=0.0),
    )
    tl.store(reward + b_lane, b_reward, mask=m_lane)
    tl.store(accept + b_lane, tl.where(m_accept, 1, 0), mask=m_lane)


@triton.jit
def accept_value_kernel(
    policy_kind: tl.tensor,
    policy_a: tl.tensor,
    policy_b: tl.tensor,
    uniform: tl.tensor,
    reward: tl.tensor,
    accept: tl.tensor,
    num_lanes: tl.tensor,
    hidden: tl.tensor,
    norm_weight: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    stride_row: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    b_lane = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    m_lane = b_lane < num_lanes
    b_reward = value_rewards(
        hidden,
        stride_row,
        b_lane,
        m_lane,
        norm_weight,
        weight,
        bias,
        eps,
        scale,
        offset,
        WIDTH,
        BLOCK_S,
        BLOCK_H,
    )
    _write(policy_kind, policy_a, policy_b, uniform, reward, accept, b_lane, m_lane, b_reward)


@triton.jit
def accept_valued_kernel(
    policy_kind: tl.tensor,
    policy_a: tl.tensor,
    policy_b: tl.tensor,
    uniform: tl.tensor,
    reward: tl.tensor,
    accept: tl.tensor,
    num_lanes: tl.tensor,
    hidden: tl.tensor,
    stride_row: tl.tensor,
    norm_weight: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    values: tl.tensor,
    eps: tl.tensor,
    num_classes: tl.tensor,
    WIDTH: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    b_lane = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    m_lane = b_lane < num_lanes
    b_reward = valued_rewards(
        hidden, stride_row, b_lane, m_lane, norm_weight, weight, bias, values, eps, num_classes,
        WIDTH, GREEDY, BLOCK_S, BLOCK_C, BLOCK_H,
    )  # fmt: skip
    _write(policy_kind, policy_a, policy_b, uniform, reward, accept, b_lane, m_lane, b_reward)


@triton.jit
def accept_classes_kernel(
    policy_kind: tl.tensor,
    policy_a: tl.tensor,
    policy_b: tl.tensor,
    uniform: tl.tensor,
    reward: tl.tensor,
    accept: tl.tensor,
    num_lanes: tl.tensor,
    scratch: tl.tensor,
    classes_bias: tl.tensor,
    num_blocks: tl.tensor,
    BLOCK_S: tl.constexpr,
) -> None:
    b_lane = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    m_lane = b_lane < num_lanes
    b_reward = class_rewards(scratch, classes_bias, b_lane, m_lane, num_lanes, num_blocks)
    _write(policy_kind, policy_a, policy_b, uniform, reward, accept, b_lane, m_lane, b_reward)


@triton.jit
def accept_ensemble_kernel(
    policy_kind: tl.tensor,
    policy_a: tl.tensor,
    policy_b: tl.tensor,
    uniform: tl.tensor,
    reward: tl.tensor,
    accept: tl.tensor,
    num_lanes: tl.tensor,
    scratch: tl.tensor,
    num_heads: tl.tensor,
    BLOCK_S: tl.constexpr,
) -> None:
    b_lane = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    m_lane = b_lane < num_lanes
    b_reward = mean_rewards(scratch, b_lane, m_lane, num_lanes, num_heads)
    _write(policy_kind, policy_a, policy_b, uniform, reward, accept, b_lane, m_lane, b_reward)


def reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    head: RewardHead,
    policy_kind: Tensor,  # [S] int32, PolicyKind
    policy_a: Tensor,  # [S] float32
    policy_b: Tensor,  # [S] float32
    uniform: Tensor,  # [S] float32 in [0, 1): the draws
    *,
    reward: Tensor,  # [S] float32, written
    accept: Tensor,  # [S] int32, written: 1 = accepted
    scratch: Tensor | None = None,  # `scratch_shape(head, S)`; None: allocated
) -> None:
    """Scores rows and accepts each with probability w(reward).

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    num_seqs = hidden.shape[0]
    check_hidden(hidden, num_seqs)
    check_head(head, hidden)
    policy = {
        "policy_kind": policy_kind, "policy_a": policy_a, "policy_b": policy_b,
        "uniform": uniform, "reward": reward, "accept": accept,
    }  # fmt: skip
    check_policy(policy, hidden)
    scratch = check_scratch(scratch, scratch_shape(head, num_seqs), hidden.device)
    for launch in reward_accept_launches(hidden, head, policy, scratch):
        launch.run()


def reward_accept_launches(
    hidden: Tensor, head: RewardHead, policy: dict[str, Tensor], scratch: Tensor
) -> list[Launch]:
    num_seqs = hidden.shape[0]
    lanes = min(16, next_power_of_2(max(num_seqs, 2)))
    grid = (ceil_div(num_seqs, lanes),)
    args = {**policy, "num_lanes": num_seqs, "BLOCK_S": lanes}
    if isinstance(head, ValueHead):
        args |= value_args(hidden, head, lanes)
        return [Launch(accept_value_kernel, grid, args, num_warps=VALUE_WARPS)]
    if isinstance(head, ClassesHead):
        args |= valued_args(hidden, head) | {"BLOCK_S": LEAST_LANES}
        grid = (ceil_div(num_seqs, LEAST_LANES),)
        return [Launch(accept_valued_kernel, grid, args, num_warps=CLASSES_WARPS)]
    if isinstance(head, EnsembleHead):
        args |= ensemble_args(head, scratch)
        first = heads_launch(hidden, head, scratch, num_seqs, None, None)
        return [first, Launch(accept_ensemble_kernel, grid, args, num_warps=1)]
    args |= classes_args(head, scratch)
    first = inner_launch(hidden, head, scratch, num_seqs, None, None)
    return [first, Launch(accept_classes_kernel, grid, args, num_warps=1)]
