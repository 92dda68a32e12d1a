"""Byte-pair encoding of one word in a Triton program: its bytes, then one merge after another.

Twin: `rsd_kernels.bridge.merge_twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.state.tables import JOINS_NEXT, JOINS_PREVIOUS, MAX_WORD_BYTES

_JOINS_NEXT = tl.constexpr(JOINS_NEXT)
_JOINS_PREVIOUS = tl.constexpr(JOINS_PREVIOUS)
_NONE = tl.constexpr((1 << 63) - 1)
_MAX_WORD = tl.constexpr(MAX_WORD_BYTES)


@triton.jit
def _kept_token(p_step: tl.tensor, count: tl.tensor, p_word: tl.tensor, i: tl.tensor) -> tl.tensor:
    """Token i of the step's `count` tokens followed by the pieces."""
    b_kept = tl.load(p_step + i, mask=i < count, other=0)
    return b_kept + tl.load(p_word + i - count, mask=i >= count, other=0)


@triton.jit
def word_start(
    tables: tl.tuple,
    merges: tl.tuple,
    p_step: tl.tensor,
    count: tl.tensor,
    p_word: tl.tensor,
    word: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Where the last word begins among `count` tokens and `word` pieces, and its size in bytes."""
    begin = count + word
    size = begin * 0
    going = begin > 0
    while going:
        token = _kept_token(p_step, count, p_word, begin - 1)
        flags = tl.load(merges.flags + token).to(tl.int32)
        joins = (flags & _JOINS_NEXT) != 0
        if joins:
            begin -= 1
            start = tl.load(tables.token_start + token)
            size += tl.load(tables.token_start + token + 1) - start
        going = joins & ((flags & _JOINS_PREVIOUS) != 0) & (begin > 0)
    return begin, size


@triton.jit
def _write_bytes(
    tables: tl.tuple, merges: tl.tuple, token: tl.tensor, p_to: tl.tensor, CHUNK: tl.constexpr
) -> tl.tensor:
    start = tl.load(tables.token_start + token)
    size = tl.load(tables.token_start + token + 1) - start
    done = 0
    while done < size:
        o_byte = done + tl.arange(0, CHUNK)
        m_byte = o_byte < size
        b_byte = tl.load(tables.token_byte + start + o_byte, mask=m_byte, other=0).to(tl.int32)
        b_token = tl.load(merges.byte_token + b_byte, mask=m_byte, other=0)
        tl.store(p_to + o_byte, b_token, mask=m_byte)
        done += CHUNK
    return size


@triton.jit
def gather_word(
    tables: tl.tuple,
    merges: tl.tuple,
    p_step: tl.tensor,
    count: tl.tensor,
    p_word: tl.tensor,
    word: tl.tensor,
    begin: tl.tensor,
    size: tl.tensor,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Overwrites the pieces from `begin` on with the byte tokens of all tokens from `begin` on.

    Returns how many pieces stay before them. It goes from the last token back, so that a piece is
    read before it is overwritten: every token before it has at least one byte.
    """
    before = tl.maximum(begin - count, 0)
    at = before + size
    i = count + word
    while i > begin:
        i -= 1
        token = _kept_token(p_step, count, p_word, i)
        start = tl.load(tables.token_start + token)
        at -= tl.load(tables.token_start + token + 1) - start
        tl.debug_barrier()
        _write_bytes(tables, merges, token, p_word + at, CHUNK)
        tl.debug_barrier()
    return before


@triton.jit
def _find(merges: tl.tuple, b_pair: tl.tensor, m_pair: tl.tensor) -> tl.tensor:
    """Index of each pair's merge by bisection, -1 if it has none."""
    b_low = tl.zeros_like(b_pair).to(tl.int32)
    b_high = b_low + merges.num_merges
    width = tl.full((), 0, tl.int32) + merges.num_merges
    while width > 0:
        b_middle = (b_low + b_high) // 2
        m_open = m_pair & (b_low < b_high)
        b_there = tl.load(merges.merge_pair + b_middle, mask=m_open, other=0)
        b_low = tl.where(m_open & (b_there < b_pair), b_middle + 1, b_low)
        b_high = tl.where(m_open & (b_there >= b_pair), b_middle, b_high)
        width = width // 2
    m_there = m_pair & (b_low < merges.num_merges)
    b_there = tl.load(merges.merge_pair + b_low, mask=m_there, other=-1)
    return tl.where(m_there & (b_there == b_pair), b_low, -1)


@triton.jit
def _best_merge(merges: tl.tuple, p_word: tl.tensor, size: tl.tensor) -> tuple[tl.tensor, ...]:
    """(rank << 32) + place of the next merge, `_NONE` if there is none; the token it makes."""
    o_left = tl.arange(0, _MAX_WORD)  # all at once: one more loop in loops would spill registers
    m_pair = o_left < size - 1
    b_left = tl.load(p_word + o_left, mask=m_pair, other=0).to(tl.int64)
    b_right = tl.load(p_word + o_left + 1, mask=m_pair, other=0).to(tl.int64)
    b_merge = _find(merges, b_left * 4294967296 + b_right, m_pair)
    m_merge = m_pair & (b_merge >= 0)
    b_rank = tl.load(merges.merge_rank + b_merge, mask=m_merge, other=0).to(tl.int64)
    b_key = tl.where(m_merge, (b_rank << 32) + o_left.to(tl.int64), _NONE)
    best = tl.min(b_key)
    b_token = tl.load(merges.merge_token + b_merge, mask=m_merge, other=0)
    return best, tl.sum(tl.where(m_merge & (b_key == best), b_token, 0))


@triton.jit
def _replace_pair(
    p_word: tl.tensor, size: tl.tensor, place: tl.tensor, made: tl.tensor, CHUNK: tl.constexpr
) -> None:
    """Puts `made` in place of the two ids at `place` and moves up the rest."""
    tl.debug_barrier()  # every thread has read the word as it was
    tl.store(p_word + place, made)
    done = place + 1
    while done < size - 1:
        o_id = done + tl.arange(0, CHUNK)
        m_id = o_id < size - 1
        b_id = tl.load(p_word + o_id + 1, mask=m_id, other=0)
        tl.debug_barrier()
        tl.store(p_word + o_id, b_id, mask=m_id)
        done += CHUNK
    tl.debug_barrier()


@triton.jit
def merge_word(
    merges: tl.tuple, p_word: tl.tensor, size: tl.tensor, CHUNK: tl.constexpr
) -> tl.tensor:
    """Merges `size` ids in place until nothing merges; returns how many are left."""
    merges_more = size > 1
    while merges_more:
        best, made = _best_merge(merges, p_word, size)
        merges_more = best != _NONE
        if merges_more:
            _replace_pair(p_word, size, (best & 0xFFFFFFFF).to(tl.int32), made, CHUNK)
            size -= 1
    return size
