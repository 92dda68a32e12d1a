"""Gumbel noise of token ids as device functions: sampling calls them.

g = -ln(-ln u), the logarithms in fixed point: no fused multiply-add can change a bit.

Twin: `rsd_kernels.gumbel.twin`, equal to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.gumbel.series import FRACTION, LN2, OFFSET, SERIES, SHIFT
from rsd_kernels.philox.kernel import random_words

_SERIES = tl.constexpr(SERIES)
_TERMS = tl.constexpr(len(SERIES))
_LN2 = tl.constexpr(LN2)
_FRACTION = tl.constexpr(FRACTION)
_SHIFT = tl.constexpr(SHIFT)
_OFFSET = tl.constexpr(OFFSET)
_HALF = tl.constexpr(1 << 31)
_MASK = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _high(b_x: tl.tensor, b_y: tl.tensor) -> tl.tensor:
    return ((b_x.to(tl.uint64) * b_y) >> 32).to(tl.uint32)


@triton.jit
def _ratio(b_f: tl.tensor) -> tl.tensor:
    """R(f), scaled by 2**30; f by 2**32."""
    b_ratio = b_f * 0 + _SERIES[_TERMS - 1]
    for i in tl.static_range(2, _TERMS + 1):
        b_ratio = tl.full((), _SERIES[_TERMS - i], tl.uint32) - _high(b_ratio, b_f)
    return b_ratio


@triton.jit
def _times(b_f: tl.tensor, b_ratio: tl.tensor) -> tl.tensor:
    """(1 - f) / 2 times the ratio: 1 - log2(1 + f), scaled by 2**FRACTION."""
    b_t = tl.full((), _HALF, tl.uint32) - (b_f >> 1)
    return (_high(b_t, b_ratio) >> (30 - _FRACTION)).to(tl.int32)


@triton.jit
def _split(b_x: tl.tensor) -> tuple[tl.tensor, ...]:
    """Exponent, and f of the mantissa 1 + f, scaled by 2**32."""
    b_bits = b_x.to(tl.uint32, bitcast=True)
    return (b_bits >> 23).to(tl.int32) - 127, b_bits << 9


@triton.jit
def gumbel(b_word: tl.tensor) -> tl.tensor:
    """-ln(-ln u) of u = (word + 1/2) / 2**32; see the twin."""
    m_upper = b_word >= _HALF
    b_rest = tl.where(m_upper, b_word ^ _MASK, b_word)
    b_p = b_rest.to(tl.int32).to(tl.float32) + 0.5
    b_exponent, b_mantissa = _split(b_p)
    b_f = tl.where(m_upper, (b_rest << 1) ^ _MASK, b_mantissa)
    b_ratio = _ratio(b_f)
    b_low = ((31 - b_exponent) << _FRACTION) + _times(b_f, b_ratio)
    b_scaled = b_low.to(tl.float32) * 137438953472.0  # 2**(62 - FRACTION)
    b_e = tl.where(m_upper, b_p * b_ratio.to(tl.int32).to(tl.float32), b_scaled)
    b_exponent, b_f = _split(b_e)
    b_log2 = ((_SHIFT + 61 - b_exponent) << _FRACTION) + _times(b_f, _ratio(b_f))
    b_fixed = _high(b_log2.to(tl.uint32), tl.full((), _LN2, tl.uint32)).to(tl.int32) - _OFFSET
    return b_fixed.to(tl.float32) * (1.0 / 33554432.0)  # 2**-FRACTION


@triton.jit
def _slot_words(
    state: tl.tuple,
    slot: tl.tensor,
    position: tl.tensor,
    purpose: tl.tensor,
    b_block: tl.tensor,
) -> tuple[tl.tensor, ...]:
    return random_words(
        tl.load(state.seed + slot), tl.load(state.sample_index + slot),
        tl.load(state.num_steps + slot), position, purpose, b_block,
    )  # fmt: skip


@triton.jit
def noise(
    state: tl.tuple,
    slot: tl.tensor,
    position: tl.tensor,
    purpose: tl.tensor,
    b_id: tl.tensor,
) -> tl.tensor:
    """The noise of any ids, for the slot's token at a position."""
    w0, w1, w2, w3 = _slot_words(state, slot, position, purpose, b_id >> 2)
    m_second, m_odd = (b_id & 2) != 0, (b_id & 1) != 0
    return gumbel(tl.where(m_odd, tl.where(m_second, w3, w1), tl.where(m_second, w2, w0)))


@triton.jit
def block_noise(
    state: tl.tuple,
    slot: tl.tensor,
    position: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The noise of the ids first:first + BLOCK, both multiples of four: four from every word."""
    b_block = (first >> 2) + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = _slot_words(state, slot, position, purpose, b_block)
    return gumbel(tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3)))
