"""Candidates of a draw: list them, count them, find a cut-off among them, draw one.

An id's key is the bits of |s|, s = x / T - max(x) / T, as an integer. All s <= 0, so the smaller
key is the more probable id, and bisection over keys finds every cut-off exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.gumbel.kernel import noise
from rsd_kernels.sample.adjust import largest

_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def scaled(
    p_logits: tl.tensor, b_id: tl.tensor, m_id: tl.tensor, temperature: tl.tensor, top: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Key (0 is the most probable) and e = exp(s) of some ids."""
    b_x = tl.load(p_logits + b_id, mask=m_id, other=float("-inf"))
    b_s = tl.div_rn(b_x, temperature) - top
    b_key = b_s.to(tl.int32, bitcast=True) & _MAGNITUDE
    return b_key, tl.exp(b_s)


@triton.jit
def compact(
    p_logits: tl.tensor,
    p_candidate: tl.tensor,
    vocabulary: tl.tensor,
    temperature: tl.tensor,
    top: tl.tensor,
    min_p: tl.tensor,
    limit: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Lists the ids whose key is at most `limit`, in order."""
    count = 0
    start = 0
    while start < vocabulary:
        b_id = start + tl.arange(0, BLOCK)
        m_id = b_id < vocabulary
        b_key, b_e = scaled(p_logits, b_id, m_id, temperature, top)
        m_kept = m_id & (b_e >= min_p) & (b_key <= limit)
        b_one = tl.where(m_kept, 1, 0)
        tl.store(p_candidate + count + tl.cumsum(b_one, 0) - 1, b_id, mask=m_kept)
        count += tl.sum(b_one)
        start += BLOCK
    tl.debug_barrier()


@triton.jit
def _candidates(
    p_candidate: tl.tensor,
    start: tl.tensor,
    number: tl.tensor,
    listed: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Ids start:start + BLOCK of the list, or of the vocabulary if nothing is listed."""
    o_id = start + tl.arange(0, BLOCK)
    m_id = o_id < number
    b_listed = tl.load(p_candidate + o_id, mask=m_id & listed, other=0)
    return tl.where(listed, b_listed, o_id), m_id


@triton.jit
def kept(
    p_logits: tl.tensor,
    p_candidate: tl.tensor,
    number: tl.tensor,
    listed: tl.tensor,
    temperature: tl.tensor,
    top: tl.tensor,
    min_p: tl.tensor,
    limit: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """How many candidates have a key of at most `limit`, and their mass."""
    count = 0
    mass = tl.full((), 0.0, tl.float64)
    start = 0
    while start < number:
        b_id, m_id = _candidates(p_candidate, start, number, listed, BLOCK)
        b_key, b_e = scaled(p_logits, b_id, m_id, temperature, top)
        m_kept = m_id & (b_e >= min_p) & (b_key <= limit)
        count += tl.sum(tl.where(m_kept, 1, 0))
        mass += tl.sum(tl.where(m_kept, b_e, 0.0).to(tl.float64))
        start += BLOCK
    return count, mass


@triton.jit
def bisect(
    p_logits: tl.tensor,
    p_candidate: tl.tensor,
    number: tl.tensor,
    listed: tl.tensor,
    temperature: tl.tensor,
    top: tl.tensor,
    min_p: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    least_count: tl.tensor,
    least_mass: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The least limit in (low, high] that keeps `least_count` ids and `least_mass`, else `high`."""
    while high - low > 1:
        middle = low + (high - low) // 2
        count, mass = kept(
            p_logits, p_candidate, number, listed, temperature, top, min_p, middle, BLOCK
        )
        enough = (count >= least_count) & (mass >= least_mass)
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    return high


@triton.jit
def noisy_largest(
    state: tl.tuple,
    slot: tl.tensor,
    position: tl.tensor,
    purpose: tl.tensor,
    p_logits: tl.tensor,
    p_candidate: tl.tensor,
    number: tl.tensor,
    listed: tl.tensor,
    temperature: tl.tensor,
    top: tl.tensor,
    min_p: tl.tensor,
    limit: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The candidate that has the largest s + noise, of those with a key of at most `limit`."""
    best, token = top * 0 + float("-inf"), number * 0 + _NO_ID
    start = 0
    while start < number:
        b_id, m_id = _candidates(p_candidate, start, number, listed, BLOCK)
        b_key, b_e = scaled(p_logits, b_id, m_id, temperature, top)
        m_kept = m_id & (b_e >= min_p) & (b_key <= limit)
        b_sum = noise(state, slot, position, purpose, b_id) - b_key.to(tl.float32, bitcast=True)
        here, here_id = largest(tl.where(m_kept, b_sum, float("-inf")), b_id)
        token = tl.where(here > best, here_id, token)
        best = tl.maximum(best, here)
        start += BLOCK
    return token
