"""Philox4x32-10 (Salmon et al., SC 2011) as device functions: other kernels call them.

Twin: `rsd_kernels.philox.twin`, equal to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.philox.twin import PURPOSE_BITS
from rsd_kernels.state.enums import Purpose

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)
_PURPOSE_BITS = tl.constexpr(PURPOSE_BITS)
PURPOSE_ACCEPT = tl.constexpr(int(Purpose.ACCEPT))


@triton.jit
def philox4x32(
    c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Ten rounds on uint32 words: c0', c1', c2', c3' = hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), ..."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + _W0).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + _W1).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def random_words(
    b_seed: tl.tensor,  # int64
    b_sample: tl.tensor,
    b_num_steps: tl.tensor,
    b_position: tl.tensor,
    purpose: tl.tensor,
    b_block: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """The four random words of each block, for a draw; all arguments but the purpose broadcast."""
    b_zero = b_block * 0
    return philox4x32(
        (b_zero + b_position).to(tl.uint32),
        (b_zero + b_num_steps).to(tl.uint32),
        ((b_block << _PURPOSE_BITS) | purpose).to(tl.uint32),
        (b_zero + b_sample).to(tl.uint32),
        b_seed.to(tl.uint32),
        (b_seed >> 32).to(tl.uint32),
    )


@triton.jit
def uniform(
    b_seed: tl.tensor,
    b_sample: tl.tensor,
    b_num_steps: tl.tensor,
    b_position: tl.tensor,
    purpose: tl.constexpr,
) -> tl.tensor:
    """A number in [0, 1) with 24 random bits: (first word >> 8) / 2**24. `b_seed` is int64."""
    b_word, _, _, _ = random_words(
        b_seed, b_sample, b_num_steps, b_position, purpose, b_position * 0
    )
    return (b_word >> 8).to(tl.float32) * (1.0 / 16777216.0)
