"""Biases of a request, and ids that it may not sample: in place, on the logits of a place.

Twin: `rsd_kernels.sample.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.state.enums import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASED_TOKENS,
    MAX_STOP_TOKENS,
)

_MAX_BIASED = tl.constexpr(MAX_BIASED_TOKENS)
_MAX_WORDS = tl.constexpr(MAX_BAD_WORDS)
_WORD_TOKENS = tl.constexpr(MAX_BAD_WORD_TOKENS)
_MAX_STOP_TOKENS = tl.constexpr(MAX_STOP_TOKENS)
_OUTSIDE = tl.constexpr(-2)  # before the output: no token of a bad word


@triton.jit
def add_biases(
    state: tl.tuple,
    p_logits: tl.tensor,
    p_raw: tl.tensor,
    slot: tl.tensor,
    only: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Adds a bias to each listed id. With `only` no other id is left; the logits are in `p_raw`."""
    if only:
        start = 0
        while start < vocabulary:
            b_id = start + tl.arange(0, BLOCK)
            b_none = tl.full((BLOCK,), float("-inf"), tl.float32)
            tl.store(p_logits + b_id, b_none, mask=b_id < vocabulary)
            start += BLOCK
    o_id = tl.arange(0, _MAX_BIASED)
    m_id = o_id < tl.load(state.num_biased + slot)
    o_id = slot.to(tl.int64) * _MAX_BIASED + o_id
    b_id = tl.load(state.biased_token + o_id, mask=m_id, other=0)
    b_bias = tl.load(state.bias + o_id, mask=m_id, other=0.0)
    b_x = tl.load(p_logits + b_id, mask=m_id & (only == 0), other=0.0)
    b_raw = tl.load(p_raw + b_id, mask=m_id & only, other=0.0)
    tl.debug_barrier()
    tl.store(p_logits + b_id, tl.where(only, b_raw, b_x) + b_bias, mask=m_id)
    tl.debug_barrier()


@triton.jit
def forbid_bad_words(
    state: tl.tuple,
    p_logits: tl.tensor,
    slot: tl.tensor,
    length: tl.tensor,
    vocabulary: tl.tensor,
) -> None:
    """Forbids the last token of each word whose other tokens are the end of the output."""
    o_word = tl.arange(0, _MAX_WORDS)
    m_word = o_word < tl.load(state.num_bad_words + slot)
    p_last = state.bad_words + (slot.to(tl.int64) * _MAX_WORDS + o_word + 1) * _WORD_TOKENS - 1
    b_last = tl.load(p_last, mask=m_word, other=0)
    p_tokens = state.tokens + slot.to(tl.int64) * state.max_len
    first = tl.load(state.prompt_length + slot)
    back = 1
    while back < _WORD_TOKENS:
        token = tl.load(p_tokens + length - back, mask=length - back >= first, other=_OUTSIDE)
        b_wanted = tl.load(p_last - back, mask=m_word, other=-1)
        m_word = m_word & ((b_wanted < 0) | (b_wanted == token))
        back += 1
    m_word = m_word & (b_last < vocabulary)
    b_none = tl.full((_MAX_WORDS,), float("-inf"), tl.float32)
    tl.store(p_logits + b_last, b_none, mask=m_word)
    tl.debug_barrier()


@triton.jit
def forbid_stops(
    state: tl.tuple, p_logits: tl.tensor, slot: tl.tensor, vocabulary: tl.tensor
) -> None:
    """Forbids every stop token, before `min_length`."""
    o_stop = tl.arange(0, _MAX_STOP_TOKENS)
    b_stop = tl.load(state.stop_tokens + slot * _MAX_STOP_TOKENS + o_stop)
    m_stop = (b_stop >= 0) & (b_stop < vocabulary)
    tl.store(p_logits + b_stop, tl.where(m_stop, float("-inf"), 0.0), mask=m_stop)
    tl.debug_barrier()
