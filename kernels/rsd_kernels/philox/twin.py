"""Counter-based random numbers: a draw depends on what it is for, never on earlier draws.

Philox4x32-10 (Salmon et al., SC 2011), keyed by (seed, sample, kept steps, position, role,
purpose). The number of kept steps matters: after a rewrite shorter than the rejected draft, the
next draft covers positions whose draws were just rejected; reusing them would bias acceptance.
"""

from __future__ import annotations

from rsd_kernels.state.enums import Purpose

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 on 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(
    seed: int, sample: int, *, num_steps: int, position: int, role: int, purpose: Purpose
) -> float:
    """A number in [0, 1) with 24 random bits, exact in float32 on every device."""
    counter = (position, num_steps, role | purpose << 8, sample)
    word = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))[0]
    return (word >> 8) * 2.0**-24
