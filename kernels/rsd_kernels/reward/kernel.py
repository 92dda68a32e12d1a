"""Reward and decision for the running batch: head, policy, draw and transition of the slot.

One launch with a head of one layer, two with the others, see `reward.scores`. Twin: `score` in
`rsd_kernels.reward.twin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.bridge.kernel import CHUNK as END_CHUNK
from rsd_kernels.end_step.decision import decide, wait_for_group
from rsd_kernels.end_step.kernel import DRAFT, KEPT, REJECTED, STEP_CHUNK, transition
from rsd_kernels.launch import Launch, all_registers, interpreting, next_power_of_2
from rsd_kernels.retokenise.kernel import check_ends, end_args, settle_ends
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward.checks import check_head, check_hidden, check_scratch
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
from rsd_kernels.schedule.advance import advance
from rsd_kernels.state.args import batch_args, check_state, page_sizes, state_args
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.tick_clock.kernel import end_tick

PRM = tl.constexpr(int(Role.PRM))
_END_CHUNK = tl.constexpr(END_CHUNK)


@triton.jit
def _complete_lanes(
    state: tl.tuple, batch: tl.tuple, BLOCK_S: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """A lane for each sequence of the pass, its slot, and whether its last pending row was read."""
    b_lane = tl.arange(0, BLOCK_S)
    m_lane = b_lane < batch.max_seqs
    b_slot = tl.load(batch.seq_slot + b_lane, mask=m_lane, other=0)
    b_complete = tl.load(batch.seq_complete + b_lane, mask=m_lane, other=0)
    m_lane = m_lane & (b_lane < tl.load(state.num_seqs))
    return b_lane, b_slot, m_lane & (b_complete != 0)


@triton.jit
def _decide(
    state: tl.tuple,
    b_slot: tl.tensor,
    m_lane: tl.tensor,
    b_reward: tl.tensor,
    tokens_per_page: tl.tuple,
    end_tables: tl.tuple,  # None: the ends of accepted steps stay as they were written
    end_merges: tl.tuple,
    words: tl.tensor,
    BLOCK_ALL: tl.constexpr,  # at least the slots
    CHUNK: tl.constexpr,
) -> None:
    """Accepts each lane's step with probability w(reward), and settles its end; else rejects it.

    A candidate waits for its group.
    """
    m_accept, b_bits = decide(state, b_slot, m_lane, b_reward)
    b_group = tl.load(state.group + b_slot, mask=m_lane, other=-1)
    wait_for_group(state, b_slot, b_group, b_group >= 0)
    transition(
        state, b_slot, m_lane & (b_group < 0), tl.where(m_accept, KEPT, REJECTED),
        b_slot * 0 + DRAFT, b_bits, tokens_per_page, CHUNK,
    )  # fmt: skip
    if end_tables is not None:
        settle_ends(state, end_tables, end_merges, words, BLOCK_ALL, _END_CHUNK)


@triton.jit(do_not_specialize=["prm_kv"])
def score_value_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    prm_kv: tl.tensor,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    words: tl.tensor,
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
    BLOCK_ALL: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = _complete_lanes(state, batch, BLOCK_S)
    o_row = tl.maximum(tl.load(batch.seq_start + b_lane + 1, mask=m_lane, other=1) - 1, 0)
    b_reward = value_rewards(
        hidden,
        stride_row,
        o_row,
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
    advance(state, batch, PRM, prm_kv, BLOCK_S, CLOCK)
    _decide(
        state, b_slot, m_lane, b_reward, tokens_per_page, end_tables, end_merges, words,
        BLOCK_ALL, CHUNK,
    )  # fmt: skip
    end_tick(state, CLOCK)


@triton.jit(do_not_specialize=["prm_kv"])
def score_valued_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    prm_kv: tl.tensor,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    words: tl.tensor,
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
    BLOCK_ALL: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = _complete_lanes(state, batch, BLOCK_S)
    o_row = tl.maximum(tl.load(batch.seq_start + b_lane + 1, mask=m_lane, other=1) - 1, 0)
    b_reward = valued_rewards(
        hidden, stride_row, o_row, m_lane, norm_weight, weight, bias, values, eps, num_classes,
        WIDTH, GREEDY, BLOCK_S, BLOCK_C, BLOCK_H,
    )  # fmt: skip
    advance(state, batch, PRM, prm_kv, BLOCK_S, CLOCK)
    _decide(
        state, b_slot, m_lane, b_reward, tokens_per_page, end_tables, end_merges, words,
        BLOCK_ALL, CHUNK,
    )  # fmt: skip
    end_tick(state, CLOCK)


@triton.jit(do_not_specialize=["prm_kv"])
def score_classes_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    prm_kv: tl.tensor,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    words: tl.tensor,
    scratch: tl.tensor,
    classes_bias: tl.tensor,
    num_blocks: tl.tensor,
    BLOCK_S: tl.constexpr,
    BLOCK_ALL: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = _complete_lanes(state, batch, BLOCK_S)
    b_reward = class_rewards(scratch, classes_bias, b_lane, m_lane, batch.max_seqs, num_blocks)
    advance(state, batch, PRM, prm_kv, BLOCK_S, CLOCK)
    _decide(
        state, b_slot, m_lane, b_reward, tokens_per_page, end_tables, end_merges, words,
        BLOCK_ALL, CHUNK,
    )  # fmt: skip
    end_tick(state, CLOCK)


@triton.jit(do_not_specialize=["prm_kv"])
def score_ensemble_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    prm_kv: tl.tensor,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    words: tl.tensor,
    scratch: tl.tensor,
    num_heads: tl.tensor,
    BLOCK_S: tl.constexpr,
    BLOCK_ALL: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = _complete_lanes(state, batch, BLOCK_S)
    b_reward = mean_rewards(scratch, b_lane, m_lane, batch.max_seqs, num_heads)
    advance(state, batch, PRM, prm_kv, BLOCK_S, CLOCK)
    _decide(
        state, b_slot, m_lane, b_reward, tokens_per_page, end_tables, end_merges, words,
        BLOCK_ALL, CHUNK,
    )  # fmt: skip
    end_tick(state, CLOCK)


def score(
    state: SlotState,
    batch: RowBatch,
    hidden: Tensor,  # [N, hidden] rows of the pass before the final norm
    head: RewardHead,
    tokens_per_page: Sequence[int],
    scratch: Tensor | None = None,  # `scratch_shape(head, batch.num_seqs)`; None: allocated
    prm_kv: Role = Role.PRM,  # whose K/V the pass has used
    ends: EndRules | None = None,  # of accepted steps; None: they stay as they were written
    words: Tensor | None = None,  # of `bridge_scratch`; None: allocated
) -> None:
    """Counts what was read; accepts or rejects each step by the reward of its last row.

    A sequence is complete when the pass read its last pending row.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    check_state(state, batch)
    check_hidden(hidden, batch.num_rows)
    check_head(head, hidden)
    scratch = check_scratch(scratch, scratch_shape(head, batch.num_seqs), hidden.device)
    words = check_ends(state, ends, words) if ends else None
    for launch in score_launches(
        state, batch, hidden, head, tokens_per_page, scratch, words, prm_kv, ends
    ):
        launch.run()


def score_launches(
    state: SlotState,
    batch: RowBatch,
    hidden: Tensor,
    head: RewardHead,
    tokens_per_page: Sequence[int],
    scratch: Tensor,
    words: Tensor | None,
    prm_kv: Role = Role.PRM,
    ends: EndRules | None = None,
) -> list[Launch]:
    """One for heads of one layer, two for the others."""
    lanes = next_power_of_2(max(batch.num_seqs, 2))
    args = {
        "state": state_args(state), "batch": batch_args(batch),
        "tokens_per_page": page_sizes(tokens_per_page), "BLOCK_S": lanes,
        "BLOCK_ALL": next_power_of_2(max(state.num_slots, 2)), "CHUNK": STEP_CHUNK,
        "CLOCK": not interpreting(), "prm_kv": int(prm_kv), "words": words if ends else None,
        **end_args(ends),
    }  # fmt: skip
    if isinstance(head, ValueHead):
        args |= value_args(hidden, head, lanes)
        return [_decider(score_value_kernel, args, VALUE_WARPS)]
    if isinstance(head, ClassesHead):
        args |= valued_args(hidden, head) | {"BLOCK_S": max(lanes, LEAST_LANES)}
        return [_decider(score_valued_kernel, args, CLASSES_WARPS)]
    lanes_of = (batch.num_seqs, batch.seq_start, state.num_seqs)
    if isinstance(head, EnsembleHead):
        args |= ensemble_args(head, scratch)
        first = heads_launch(hidden, head, scratch, *lanes_of)
        return [first, _decider(score_ensemble_kernel, args, 4)]
    args |= classes_args(head, scratch)
    first = inner_launch(hidden, head, scratch, *lanes_of)
    return [first, _decider(score_classes_kernel, args, 8)]


def _decider(kernel: Any, args: dict[str, Any], num_warps: int) -> Launch:
    registers = all_registers(num_warps)
    return Launch(kernel, (1,), args, num_warps=num_warps, max_registers=registers)
