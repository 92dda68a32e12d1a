"""Fused reward and decision of the running batch: score, policy, draw and transition.

One launch with the value head, two with the two-class head, see `reward_scores`. Twin: `score` in
`rsd_kernels.reward.twin`.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.end_step.kernel import STEP_CHUNK, complete_lanes, decide_lanes
from rsd_kernels.launch import Launch, interpreting, next_power_of_2
from rsd_kernels.reward.checks import check_head, check_hidden, check_scratch
from rsd_kernels.reward.heads import RewardHead, ValueHead
from rsd_kernels.reward.scores import (
    VALUE_WARPS,
    class_rewards,
    classes_args,
    inner_launch,
    scratch_shape,
    value_args,
    value_rewards,
)
from rsd_kernels.state.args import batch_args, check_state, page_sizes, state_args
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.tick_clock.kernel import end_tick


@triton.jit
def score_value_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    hidden: tl.tensor,
    norm_weight: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    stride_row: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = complete_lanes(state, batch, BLOCK_S)
    o_row = tl.maximum(tl.load(batch.seq_start + b_lane + 1, mask=m_lane, other=1) - 1, 0)
    b_reward = value_rewards(
        hidden, stride_row, o_row, m_lane, norm_weight, weight, bias, eps, WIDTH, BLOCK_S, BLOCK_H
    )
    decide_lanes(state, b_slot, m_lane, b_reward, tokens_per_page, CHUNK)
    end_tick(state, CLOCK)


@triton.jit
def score_classes_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    scratch: tl.tensor,
    classes_bias: tl.tensor,
    num_blocks: tl.tensor,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = complete_lanes(state, batch, BLOCK_S)
    b_reward = class_rewards(scratch, classes_bias, b_lane, m_lane, batch.max_seqs, num_blocks)
    decide_lanes(state, b_slot, m_lane, b_reward, tokens_per_page, CHUNK)
    end_tick(state, CLOCK)


def score(
    state: SlotState,
    batch: RowBatch,
    hidden: Tensor,  # [N, hidden] rows of the pass before the final norm
    head: RewardHead,
    tokens_per_page: Sequence[int],
    scratch: Tensor | None = None,  # `scratch_shape(head, batch.num_seqs)`; None: allocated
) -> None:
    """Scores the last row of each complete sequence and decides its step.

    Raises:
        ValueError: a tensor's shape, dtype, strides or device is not one it can take.
    """
    check_state(state, batch)
    check_hidden(hidden, head, batch.num_rows)
    check_head(head, hidden)
    scratch = check_scratch(scratch, scratch_shape(head, batch.num_seqs), hidden.device)
    for launch in score_launches(state, batch, hidden, head, tokens_per_page, scratch):
        launch.run()


def score_launches(
    state: SlotState,
    batch: RowBatch,
    hidden: Tensor,
    head: RewardHead,
    tokens_per_page: Sequence[int],
    scratch: Tensor,
) -> list[Launch]:
    """One launch for the value head, two for the two-class head."""
    lanes = next_power_of_2(max(batch.num_seqs, 2))
    args = {
        "state": state_args(state), "batch": batch_args(batch),
        "tokens_per_page": page_sizes(tokens_per_page), "BLOCK_S": lanes, "CHUNK": STEP_CHUNK,
        "CLOCK": not interpreting(),
    }  # fmt: skip
    if isinstance(head, ValueHead):
        args |= value_args(hidden, head, lanes)
        return [Launch(score_value_kernel, (1,), args, num_warps=VALUE_WARPS)]
    args |= classes_args(head, scratch)
    first = inner_launch(hidden, head, scratch, batch.num_seqs, batch.seq_start, state.num_seqs)
    return [first, Launch(score_classes_kernel, (1,), args, num_warps=4)]
