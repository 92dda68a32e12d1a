"""Gumbel noise of token ids: g = -ln(-ln u), u uniform, the same bits on every device.

The logarithms are in fixed point, so neither a library's `log` nor a fused multiply-add can change
a bit. u has 32 random bits: (word + 1/2) / 2**32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsd_kernels.gumbel.series import FRACTION, LN2, OFFSET, SERIES, SHIFT
from rsd_kernels.philox.twin import DrawKey

if TYPE_CHECKING:
    from rsd_kernels.philox.twin import Words

MOST_NOISE = 27.0  # more than the noise of two ids can differ
_HALF = 1 << 31
_MASK = 0xFFFFFFFF


def noise(key: DrawKey, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """[n] float32: the noise of each of the ids [n]. It does not depend on the other ids."""
    blocks, places = np.unique(ids >> 2, return_inverse=True)
    words = np.stack(key.words(blocks.astype(np.uint64)))
    return gumbel(words[ids & 3, places])


def gumbel(word: Words) -> NDArray[np.float32]:
    """-ln(-ln u) of u = (word + 1/2) / 2**32, within 4e-7 and the rounding of a float32.

    Both logarithms go by `_one_less_log2`: E = -log2 u is 1 - log2(m) - exponent for u < 1/2; above
    that it is p R(1 - 2 p) with p = 1 - u, so small values keep their relative precision.
    """
    upper = word >= _HALF
    rest = np.where(upper, word ^ _MASK, word)
    p = rest.astype(np.float32) + np.float32(0.5)  # min(u, 1 - u), scaled by 2**32
    exponent, mantissa = _split(p)
    f = np.where(upper, ~(rest << 1) & _MASK, mantissa)
    ratio = _ratio(f)
    low = ((31 - exponent) << FRACTION) + (_times(f, ratio) >> 5)
    scaled = low.astype(np.float32) * np.float32(2.0 ** (62 - FRACTION))
    e = np.where(upper, p * ratio.astype(np.float32), scaled)  # E, scaled by 2**62
    exponent, f = _split(e)
    log2 = ((SHIFT + 61 - exponent) << FRACTION) + (_times(f, _ratio(f)) >> 5)
    fixed = ((log2.astype(np.uint64) * LN2) >> 32).astype(np.int32) - OFFSET
    return fixed.astype(np.float32) * np.float32(2.0**-FRACTION)


def _split(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], Words]:
    """Exponent, and f of the mantissa 1 + f, scaled by 2**32."""
    bits = x.view(np.uint32).astype(np.uint64)
    return (bits >> 23).astype(np.int64) - 127, (bits << np.uint64(9)) & np.uint64(_MASK)


def _ratio(f: Words) -> Words:
    """R(f), scaled by 2**30."""
    ratio = np.full_like(f, SERIES[-1])
    for coefficient in reversed(SERIES[:-1]):
        ratio = coefficient - ((ratio * f) >> 32)
    return ratio


def _times(f: Words, ratio: Words) -> NDArray[np.int64]:
    """(1 - f) / 2 times the ratio: 1 - log2(1 + f), scaled by 2**30."""
    return (((_HALF - (f >> 1)) * ratio) >> 32).astype(np.int64)
