"""Penalties for tokens that are there already: in place, on the logits of a place.

Repetition penalty p: x / p if x > 0 else x p, for every id in prompt and output. Then, for every
id in the output: x - frequency * count - presence.

Twin: `rsd_kernels.sample.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def penalise_context(
    state: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    length: tl.tensor,
    penalty: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """In place. All logits are read before one is written, so a repeated id is penalised once."""
    p_tokens = state.tokens + slot.to(tl.int64) * state.max_len
    p_seen = scratch.seen + i_place.to(tl.int64) * state.max_len
    start = 0
    while start < length:
        o_token = start + tl.arange(0, BLOCK)
        b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
        m_token = b_token < vocabulary
        b_x = tl.load(p_logits + b_token, mask=m_token, other=0.0)
        tl.store(p_seen + o_token, b_x, mask=m_token)
        start += BLOCK
    tl.debug_barrier()
    start = 0
    while start < length:
        o_token = start + tl.arange(0, BLOCK)
        b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
        m_token = b_token < vocabulary
        b_x = tl.load(p_seen + o_token, mask=m_token, other=0.0)
        b_x = tl.where(b_x > 0, tl.div_rn(b_x, penalty), b_x * penalty)
        tl.store(p_logits + b_token, b_x, mask=m_token)
        start += BLOCK
    tl.debug_barrier()


@triton.jit
def penalise_output(
    state: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    length: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Frequency and presence penalties.

    The ids are counted where their logits are, which wait in `seen` meanwhile.
    """
    frequency = tl.load(state.frequency_penalty + slot)
    presence = tl.load(state.presence_penalty + slot)
    if (frequency != 0.0) | (presence != 0.0):
        first = tl.load(state.prompt_length + slot)
        p_tokens = state.tokens + slot.to(tl.int64) * state.max_len
        p_seen = scratch.seen + i_place.to(tl.int64) * state.max_len
        start = first
        while start < length:
            o_token = start + tl.arange(0, BLOCK)
            b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
            b_x = tl.load(p_logits + b_token, mask=b_token < vocabulary, other=0.0)
            tl.store(p_seen + o_token, b_x, mask=b_token < vocabulary)
            start += BLOCK
        tl.debug_barrier()
        start = first
        while start < length:
            o_token = start + tl.arange(0, BLOCK)
            b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
            b_zero = tl.zeros((BLOCK,), tl.float32)
            tl.store(p_logits + b_token, b_zero, mask=b_token < vocabulary)
            start += BLOCK
        tl.debug_barrier()
        start = first
        while start < length:
            o_token = start + tl.arange(0, BLOCK)
            b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
            b_one = tl.full((BLOCK,), 1.0, tl.float32)
            tl.atomic_add(p_logits + b_token, b_one, mask=b_token < vocabulary)
            start += BLOCK
        tl.debug_barrier()
        start = first
        while start < length:
            o_token = start + tl.arange(0, BLOCK)
            b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
            m_token = b_token < vocabulary
            b_count = tl.load(p_logits + b_token, mask=m_token, other=0.0)
            b_x = tl.load(p_seen + o_token, mask=m_token, other=0.0)
            tl.debug_barrier()
            tl.store(p_seen + o_token, b_x - b_count * frequency - presence, mask=m_token)
            start += BLOCK
        tl.debug_barrier()
        start = first
        while start < length:
            o_token = start + tl.arange(0, BLOCK)
            b_token = tl.load(p_tokens + o_token, mask=o_token < length, other=_NO_ID)
            b_x = tl.load(p_seen + o_token, mask=b_token < vocabulary, other=0.0)
            tl.store(p_logits + b_token, b_x, mask=b_token < vocabulary)
            start += BLOCK
        tl.debug_barrier()
