"""Append decided steps to the log, in the order of the lanes.

Twin: `rsd_kernels.step_log.twin`. A device function: `end_step` and `score` call it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.launch import interpreting
from rsd_kernels.state.enums import LOG_HEADER, LOGPROB_WORDS, MAX_LOGPROBS

_FENCE = tl.constexpr(not interpreting())  # the interpreter has no threads to order
_HEADER = tl.constexpr(LOG_HEADER)
_OWN_WORDS = tl.constexpr(LOGPROB_WORDS)
_MAX_LOGPROBS = tl.constexpr(MAX_LOGPROBS)


@triton.jit
def publish(
    state: tl.tuple,
    m_lane: tl.tensor,
    b_slot: tl.tensor,
    b_kind: tl.tensor,
    b_source: tl.tensor,
    b_reward_bits: tl.tensor,
    b_finish: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """Appends what the log lacks of the step committed:length of each lane's slot (all different).

    It has a barrier: what any thread read before the call may be overwritten after it. The log and
    its end may lie in the host's memory: nothing is read there, and its end is written once.
    """
    b_first = tl.load(state.committed + b_slot, mask=m_lane, other=0)
    b_first = tl.maximum(b_first, tl.load(state.told + b_slot, mask=m_lane, other=0))
    b_count = tl.load(state.length + b_slot, mask=m_lane, other=0) - b_first
    b_generation = tl.load(state.generation + b_slot, mask=m_lane, other=0)
    b_top = tl.load(state.num_logprobs + b_slot, mask=m_lane, other=-1)
    b_words = tl.where(b_top >= 0, b_count * (2 * b_top + _OWN_WORDS), 0)  # of logprobs
    b_size = tl.where(m_lane, _HEADER + b_count + b_words, 0)
    head = tl.load(state.log_head)
    b_at = head + tl.cumsum(b_size, 0) - b_size
    p_record = state.log + b_at
    tl.store(p_record, b_size, mask=m_lane)
    tl.store(p_record + 1, b_slot, mask=m_lane)
    tl.store(p_record + 2, b_generation, mask=m_lane)
    tl.store(p_record + 3, b_kind, mask=m_lane)
    tl.store(p_record + 4, b_source, mask=m_lane)
    tl.store(p_record + 5, b_reward_bits, mask=m_lane)
    tl.store(p_record + 6, b_finish, mask=m_lane)
    tl.store(p_record + 7, b_count, mask=m_lane)
    b_guesses = tl.load(state.step_guesses + b_slot, mask=m_lane, other=0)
    tl.store(p_record + 8, b_guesses, mask=m_lane)
    o_token = b_slot.to(tl.int64) * state.max_len + b_first
    _copy_tokens(state, o_token, b_at + _HEADER, b_count, CHUNK)
    _copy_logprobs(state, o_token, b_at + _HEADER + b_count, b_words, b_top, CHUNK)
    # Every thread has read the head and the columns, and has written its words of the records.
    tl.debug_barrier()
    size = tl.sum(b_size)
    tl.store(state.log_end, _after_all_writes(head + size, size), mask=size > 0)
    tl.store(state.log_head, head + size)


@triton.jit
def _after_all_writes(head: tl.tensor, size: tl.tensor) -> tl.tensor:
    """`head`, once the host can see the `size` words written: the log may be in its memory.

    Where nothing was written there is no fence; a branch would cost registers.
    """
    if _FENCE:
        head = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p fence.acq_rel.sys; mov.b32 $0, $1; }",
            "=r,r,r", [head, size], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    return head


@triton.jit
def _copy_tokens(
    state: tl.tuple, o_token: tl.tensor, b_at: tl.tensor, b_count: tl.tensor, CHUNK: tl.constexpr
) -> None:
    most = tl.max(b_count)
    done = 0
    while done < most:
        o_word = done + tl.arange(0, CHUNK)[None, :]
        m_word = o_word < b_count[:, None]
        b_word = tl.load(state.tokens + o_token[:, None] + o_word, mask=m_word, other=0)
        tl.store(state.log + b_at[:, None] + o_word, b_word, mask=m_word)
        done += CHUNK


@triton.jit
def _copy_logprobs(
    state: tl.tuple,
    o_token: tl.tensor,
    b_at: tl.tensor,
    b_words: tl.tensor,
    b_top: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """A block for each token: its own logprob and rank, then ids, then the logprobs of these."""
    most = tl.max(b_words)
    done = 0
    while done < most:
        o_word = done + tl.arange(0, CHUNK)[None, :]
        m_word = o_word < b_words[:, None]
        b_k = tl.maximum(b_top, 0)[:, None]
        b_block = 2 * b_k + _OWN_WORDS
        o_from = o_token[:, None] + o_word // b_block
        b_place = o_word % b_block
        m_own = m_word & (b_place == 0)
        m_rank = m_word & (b_place == 1)
        m_id = m_word & (b_place >= _OWN_WORDS) & (b_place < b_k + _OWN_WORDS)
        m_value = m_word & (b_place >= b_k + _OWN_WORDS)
        o_top = o_from * _MAX_LOGPROBS + b_place - _OWN_WORDS
        b_own = tl.load(state.token_logprob + o_from, mask=m_own, other=0.0)
        b_rank = tl.load(state.token_rank + o_from, mask=m_rank, other=0)
        b_id = tl.load(state.top_token + o_top, mask=m_id, other=0)
        b_value = tl.load(state.top_logprob + o_top - b_k, mask=m_value, other=0.0)
        b_float = tl.where(m_own, b_own, b_value).to(tl.int32, bitcast=True)
        b_whole = tl.where(m_rank, b_rank, b_id)
        b_word = tl.where(m_rank | m_id, b_whole, b_float)
        tl.store(state.log + b_at[:, None] + o_word, b_word, mask=m_word)
        done += CHUNK
