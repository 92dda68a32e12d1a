"""Whether a scored step is accepted: its reward, its policy and its draw. A device function.

Twin: `decide_step` in `rsd_kernels.end_step.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.philox.kernel import PURPOSE_ACCEPT, uniform
from rsd_kernels.policy.kernel import accepts

NAN_BITS = tl.constexpr(0x7FC00000)


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
