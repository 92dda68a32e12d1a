"""Count what a pass has read. A device function: `write` and `score` call it first.

Twin: `advance` in `rsd_kernels.schedule.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit
def advance(
    state: tl.tuple,
    batch: tl.tuple,
    role: tl.tensor,
    kv_role: tl.tensor,
    BLOCK_S: tl.constexpr,  # at least the sequences
    CLOCK: tl.constexpr,
) -> None:
    """Moves the cursor of `kv_role` over the rows that the forward of `role` has just read."""
    b_seq = tl.arange(0, BLOCK_S)
    m_seq = b_seq < batch.max_seqs
    b_first = tl.load(batch.seq_start + b_seq, mask=m_seq, other=0)
    b_rows = tl.load(batch.seq_start + b_seq + 1, mask=m_seq, other=0) - b_first
    b_slot = tl.load(batch.seq_slot + b_seq, mask=m_seq, other=0)
    b_kv = tl.load(batch.seq_kv_len + b_seq, mask=m_seq, other=0)
    num_seqs = tl.load(state.num_seqs)
    m_seq = m_seq & (b_seq < num_seqs)
    o_role = role * state.num_slots + b_slot
    b_read = tl.load(state.tokens_read + o_role, mask=m_seq, other=0) + b_rows
    b_passes = tl.load(state.passes + o_role, mask=m_seq, other=0) + 1
    b_time = tl.load(state.nanoseconds + o_role, mask=m_seq, other=0)
    if CLOCK:
        b_time += (globaltimer() - tl.load(state.pass_start)) // tl.maximum(num_seqs, 1)
    tl.debug_barrier()
    tl.store(state.kv_len + kv_role * state.num_slots + b_slot, b_kv, mask=m_seq)
    tl.store(state.tokens_read + o_role, b_read, mask=m_seq)
    tl.store(state.passes + o_role, b_passes, mask=m_seq)
    tl.store(state.nanoseconds + o_role, b_time, mask=m_seq)
