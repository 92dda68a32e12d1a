"""What becomes of a step, for every slot in one launch: send it to the PRM, keep it, forget it.

keep:   committed = length, prm_committed = prm_length, stop_committed = stop_state
reject: length = committed, prm_length = prm_committed, stop_state = stop_committed, K/V cut to them

Twin: `rsd_kernels.end_step.twin`. One program a launch: the order of log records and of freed
pages is that of the slots (end_step) or of the pass's sequences (decide).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import Launch, check_devices, check_dtype, interpreting, next_power_of_2
from rsd_kernels.philox.kernel import PURPOSE_ACCEPT, uniform
from rsd_kernels.policy.kernel import accepts
from rsd_kernels.rollback.kernel import truncate_lanes
from rsd_kernels.state.args import batch_args, check_state, page_sizes, state_args, warps_for
from rsd_kernels.state.enums import Finish, Mode, Phase, RecordKind, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.step_log.kernel import publish
from rsd_kernels.tick_clock.kernel import end_tick

_KEPT = tl.constexpr(int(RecordKind.KEPT))
_REJECTED = tl.constexpr(int(RecordKind.REJECTED))
_DROPPED = tl.constexpr(int(RecordKind.DROPPED))
_DRAFT = tl.constexpr(int(Role.DRAFT))
_PRM = tl.constexpr(int(Role.PRM))
_PHASE_DRAFT = tl.constexpr(int(Phase.DRAFT))
_PHASE_SCORE = tl.constexpr(int(Phase.SCORE))
_PHASE_TARGET = tl.constexpr(int(Phase.TARGET))
_PHASE_WAIT_HOST = tl.constexpr(int(Phase.WAIT_HOST))
_PHASE_DONE = tl.constexpr(int(Phase.DONE))
_MODE_RSD = tl.constexpr(int(Mode.RSD))
_MODE_TARGET = tl.constexpr(int(Mode.TARGET))
_FINISH_NONE = tl.constexpr(int(Finish.NONE))
_FINISH_STEPS = tl.constexpr(int(Finish.STEPS))
_FINISH_ERROR = tl.constexpr(int(Finish.ERROR))
_FINISH_PRM_FULL = tl.constexpr(int(Finish.PRM_FULL))
_NAN_BITS = tl.constexpr(0x7FC00000)
STEP_CHUNK = 16  # words and pages a slot copies at a time: more would spill


@triton.jit
def transition(
    state: tl.tuple,
    b_slot: tl.tensor,  # [lanes] int32, a slot at most once
    m_lane: tl.tensor,  # [lanes] whose step is decided
    b_kind: tl.tensor,  # [lanes] kept, rejected or dropped
    b_source: tl.tensor,  # [lanes] the role that wrote the step
    b_reward_bits: tl.tensor,  # [lanes] its reward as it goes into the log
    tokens_per_page: tl.tuple,
    CHUNK: tl.constexpr,
) -> None:
    """Logs each lane's step and puts its slot into the next phase."""
    b_first = tl.load(state.committed + b_slot, mask=m_lane, other=0)
    b_last = tl.load(state.length + b_slot, mask=m_lane, other=0)
    b_prm_first = tl.load(state.prm_committed + b_slot, mask=m_lane, other=0)
    b_prm_last = tl.load(state.prm_length + b_slot, mask=m_lane, other=0)
    b_stop_first = tl.load(state.stop_committed + b_slot, mask=m_lane, other=0)
    b_stop_last = tl.load(state.stop_state + b_slot, mask=m_lane, other=0)
    b_mode = tl.load(state.mode + b_slot, mask=m_lane, other=0)
    b_steps = tl.load(state.num_steps + b_slot, mask=m_lane, other=0) + 1
    b_max_steps = tl.load(state.max_steps + b_slot, mask=m_lane, other=0)
    b_finish = tl.load(state.finish + b_slot, mask=m_lane, other=0)
    m_kept = m_lane & (b_kind == _KEPT)
    m_rejected = m_lane & (b_kind == _REJECTED)
    b_finish = tl.where((b_finish == 0) & (b_steps >= b_max_steps), _FINISH_STEPS, b_finish)
    b_finish = tl.where(m_rejected, _FINISH_NONE, b_finish)
    # It has a barrier: every warp has read the columns before one of them is overwritten.
    publish(state, m_lane, b_slot, b_kind, b_source, b_reward_bits, b_finish, CHUNK)
    tl.store(state.num_steps + b_slot, b_steps, mask=m_kept)
    tl.store(state.committed + b_slot, b_last, mask=m_kept)
    tl.store(state.prm_committed + b_slot, b_prm_last, mask=m_kept)
    tl.store(state.stop_committed + b_slot, b_stop_last, mask=m_kept)
    tl.store(state.length + b_slot, b_first, mask=m_rejected)
    tl.store(state.prm_length + b_slot, b_prm_first, mask=m_rejected)
    tl.store(state.stop_state + b_slot, b_stop_first, mask=m_rejected)
    m_next = m_kept | m_rejected
    b_zero = b_slot * 0
    tl.store(state.delimiter_state + b_slot, b_zero, mask=m_next)
    tl.store(state.match_bytes + b_slot, b_zero, mask=m_next)
    tl.store(state.finish + b_slot, b_zero, mask=m_next)
    b_writer = tl.where(b_mode == _MODE_TARGET, _PHASE_TARGET, _PHASE_DRAFT)
    b_phase = tl.where(b_finish != 0, _PHASE_DONE, b_writer)
    b_phase = tl.where(m_rejected, _PHASE_TARGET, b_phase)
    tl.store(state.phase + b_slot, b_phase, mask=m_lane)
    b_keep = tl.where(m_rejected, b_first, 0)
    truncate_lanes(
        state.kv_len, state.num_pages, state.page_table, state.free_pages, state.num_free,
        b_slot, m_rejected | (m_lane & (b_finish != 0)),
        b_keep, b_keep, tl.where(m_rejected, b_prm_first, 0),
        tokens_per_page.draft, tokens_per_page.target, tokens_per_page.prm,
        state.num_slots, state.num_columns, 3, CHUNK,
    )  # fmt: skip


@triton.jit
def decide_lanes(
    state: tl.tuple,
    b_slot: tl.tensor,
    m_lane: tl.tensor,
    b_reward: tl.tensor,
    tokens_per_page: tl.tuple,
    CHUNK: tl.constexpr,
) -> None:
    """Draws, accepts or rejects, and makes the transition."""
    b_kind = tl.load(state.policy_kind + b_slot, mask=m_lane, other=0)
    b_a = tl.load(state.policy_a + b_slot, mask=m_lane, other=0.0)
    b_b = tl.load(state.policy_b + b_slot, mask=m_lane, other=0.0)
    b_uniform = uniform(
        tl.load(state.seed + b_slot, mask=m_lane, other=0),
        tl.load(state.sample_index + b_slot, mask=m_lane, other=0),
        tl.load(state.num_steps + b_slot, mask=m_lane, other=0),
        tl.load(state.length + b_slot, mask=m_lane, other=0),
        _PRM,
        PURPOSE_ACCEPT,
    )
    m_nan = m_lane & (b_reward != b_reward)
    b_nan = tl.load(state.nan_rewards + b_slot, mask=m_nan, other=0) + 1
    m_accept = accepts(b_kind, b_a, b_b, b_reward, b_uniform)
    tl.debug_barrier()
    tl.store(state.reward + b_slot, b_reward, mask=m_lane)
    tl.store(state.nan_rewards + b_slot, b_nan, mask=m_nan)
    b_bits = tl.where(m_nan, _NAN_BITS, b_reward.to(tl.int32, bitcast=True))
    transition(
        state, b_slot, m_lane, tl.where(m_accept, _KEPT, _REJECTED), b_slot * 0 + _DRAFT, b_bits,
        tokens_per_page, CHUNK,
    )  # fmt: skip


@triton.jit
def complete_lanes(
    state: tl.tuple, batch: tl.tuple, BLOCK_S: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The slots of the pass in lanes, and which of them read their last pending row."""
    b_lane = tl.arange(0, BLOCK_S)
    m_lane = (b_lane < batch.max_seqs) & (b_lane < tl.load(state.num_seqs))
    b_slot = tl.load(batch.seq_slot + b_lane, mask=m_lane, other=0)
    return (
        b_lane,
        b_slot,
        m_lane & (tl.load(batch.seq_complete + b_lane, mask=m_lane, other=0) != 0),
    )


@triton.jit
def decide_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    rewards: tl.tensor,
    tokens_per_page: tl.tuple,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_lane, b_slot, m_lane = complete_lanes(state, batch, BLOCK_S)
    b_reward = tl.load(rewards + b_lane, mask=m_lane, other=0.0)
    decide_lanes(state, b_slot, m_lane, b_reward, tokens_per_page, CHUNK)
    end_tick(state, CLOCK)


@triton.jit
def end_step_kernel(
    state: tl.tuple,
    tokens_per_page: tl.tuple,
    first: tl.tensor,
    count: tl.tensor,
    ONLY_ENDED: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    """Slots first:first + count, in order."""
    b_slot = first + tl.arange(0, BLOCK_S)
    m_lane = b_slot < first + count
    b_phase = tl.load(state.phase + b_slot, mask=m_lane, other=0)
    if ONLY_ENDED:
        b_ended = tl.load(state.ended + b_slot, mask=m_lane, other=0)
        m_lane = m_lane & (b_ended != 0) & (b_phase != _PHASE_WAIT_HOST)
    b_source = tl.load(state.step_source + b_slot, mask=m_lane, other=0)
    b_finish = tl.load(state.finish + b_slot, mask=m_lane, other=0)
    b_mode = tl.load(state.mode + b_slot, mask=m_lane, other=0)
    m_dropped = (b_finish == _FINISH_ERROR) | (b_finish == _FINISH_PRM_FULL)
    m_score = m_lane & ~m_dropped & (b_source == _DRAFT) & (b_mode == _MODE_RSD)
    tl.debug_barrier()
    tl.store(state.phase + b_slot, b_slot * 0 + _PHASE_SCORE, mask=m_score)
    transition(
        state, b_slot, m_lane & ~m_score, tl.where(m_dropped, _DROPPED, _KEPT), b_source,
        b_slot * 0 + _NAN_BITS, tokens_per_page, CHUNK,
    )  # fmt: skip
    if ONLY_ENDED:
        end_tick(state, CLOCK)


def decide(
    state: SlotState,
    batch: RowBatch,
    rewards: Tensor,  # [S] float32
    tokens_per_page: Sequence[int],
) -> None:
    """Accepts each complete sequence's step with probability w(reward), else forgets it.

    Raises:
        ValueError: the state or `rewards` is not contiguous, not on one device, or too small.
    """
    check_state(state, batch)
    check_devices(length=state.length, rewards=rewards)
    check_dtype("rewards", rewards, torch.float32)
    if rewards.dim() != 1 or rewards.shape[0] < batch.num_seqs or not rewards.is_contiguous():
        raise ValueError(
            f"rewards has shape {list(rewards.shape)} and strides {rewards.stride()}; it must "
            f"be a contiguous vector of at least {batch.num_seqs}, one a sequence"
        )
    decide_launch(state, batch, rewards, tokens_per_page).run()


def decide_launch(
    state: SlotState, batch: RowBatch, rewards: Tensor, tokens_per_page: Sequence[int]
) -> Launch:
    args = {
        "state": state_args(state),
        "batch": batch_args(batch),
        "rewards": rewards,
        "tokens_per_page": page_sizes(tokens_per_page),
        "BLOCK_S": next_power_of_2(max(batch.num_seqs, 1)),
        "CHUNK": STEP_CHUNK,
        "CLOCK": not interpreting(),
    }
    return Launch(decide_kernel, (1,), args, num_warps=warps_for(batch.num_seqs))


def end_step(state: SlotState, tokens_per_page: Sequence[int]) -> None:
    """After a writer's pass: ended draft steps go to the PRM, the others are kept unscored.

    Raises:
        ValueError: the state is not contiguous or not on one device that runs Triton.
    """
    check_state(state)
    end_step_launch(state, tokens_per_page).run()


def end_slot_step(state: SlotState, slot: int, tokens_per_page: Sequence[int]) -> None:
    """The transition of one slot whose step stands on every row.

    Raises:
        ValueError: `slot` is not a slot, or the state is not one the kernel can take.
    """
    if not 0 <= slot < state.num_slots:
        raise ValueError(f"slot is {slot}; it must be 0 to {state.num_slots - 1}")
    check_state(state)
    end_step_launch(state, tokens_per_page, slot).run()


def end_step_launch(
    state: SlotState, tokens_per_page: Sequence[int], slot: int | None = None
) -> Launch:
    """Every ended slot, or the one named."""
    count = state.num_slots if slot is None else 1
    args = {
        "state": state_args(state),
        "tokens_per_page": page_sizes(tokens_per_page),
        "first": slot or 0,
        "count": count,
        "ONLY_ENDED": slot is None,
        "BLOCK_S": max(next_power_of_2(count), 2),
        "CHUNK": STEP_CHUNK,
        "CLOCK": not interpreting(),
    }
    return Launch(end_step_kernel, (1,), args, num_warps=warps_for(count))
