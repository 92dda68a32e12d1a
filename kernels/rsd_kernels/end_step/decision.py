"""Whether a scored step is accepted: its reward, its policy and its draw. Device functions.

Twin: `decide_step` in `rsd_kernels.end_step.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.philox.kernel import PURPOSE_ACCEPT, uniform
from rsd_kernels.policy.kernel import accepts
from rsd_kernels.state.enums import Phase

NAN_BITS = tl.constexpr(0x7FC00000)
_PHASE_CANDIDATE = tl.constexpr(int(Phase.CANDIDATE))
_PHASE_CHOICE = tl.constexpr(int(Phase.CHOICE))


@triton.jit
def decide(
    state: tl.tuple, b_slot: tl.tensor, m_lane: tl.tensor, b_reward: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Writes each lane's reward; returns whether it accepts, and the reward's bits for the log."""
    b_kind = tl.load(state.policy_kind + b_slot, mask=m_lane, other=0)
    b_a = tl.load(state.policy_a + b_slot, mask=m_lane, other=0.0)
    b_b = tl.load(state.policy_b + b_slot, mask=m_lane, other=0.0)
    b_uniform = uniform(
        tl.load(state.seed + b_slot, mask=m_lane, other=0),
        tl.load(state.sample_index + b_slot, mask=m_lane, other=0),
        tl.load(state.num_steps + b_slot, mask=m_lane, other=0),
        tl.load(state.length + b_slot, mask=m_lane, other=0),
        PURPOSE_ACCEPT,
    )
    m_nan = m_lane & (b_reward != b_reward)
    b_nan = tl.load(state.nan_rewards + b_slot, mask=m_nan, other=0) + 1
    m_accept = accepts(b_kind, b_a, b_b, b_reward, b_uniform)
    tl.debug_barrier()
    tl.store(state.reward + b_slot, b_reward, mask=m_lane)
    tl.store(state.nan_rewards + b_slot, b_nan, mask=m_nan)
    return m_accept, tl.where(m_nan, NAN_BITS, b_reward.to(tl.int32, bitcast=True))


@triton.jit
def wait_for_group(
    state: tl.tuple, b_slot: tl.tensor, b_group: tl.tensor, m_wait: tl.tensor
) -> None:
    """Lanes of `m_wait` have their reward, as the last of a group or not: in order of the lanes.

    A candidate is neither accepted nor rejected: the last of a group lets the host choose.
    """
    lanes: tl.constexpr = b_slot.shape[0]
    b_lane = tl.arange(0, lanes)
    lane = tl.min(tl.where(m_wait, b_lane, lanes))
    if lane < lanes:
        b_here = tl.load(state.group_left + b_group, mask=m_wait, other=0)
        b_after = b_here  # what is left once the lane has its reward, and once all have it
        while lane < lanes:
            m_group = b_group == tl.sum(tl.where(b_lane == lane, b_group, 0))
            b_here = tl.where(m_group & (b_lane >= lane), b_here - 1, b_here)
            b_after = tl.where(m_group, b_after - 1, b_after)
            lane = tl.min(tl.where(m_wait & (b_lane > lane), b_lane, lanes))
        tl.debug_barrier()
        tl.store(state.group_left + b_group, b_after, mask=m_wait)
        b_phase = tl.where(b_here == 0, _PHASE_CHOICE, _PHASE_CANDIDATE)
        tl.store(state.phase + b_slot, b_phase, mask=m_wait)
