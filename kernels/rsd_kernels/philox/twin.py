"""Counter-based random numbers: a draw depends on what it is for, never on earlier draws.

Philox4x32-10 (Salmon et al., SC 2011), keyed by (seed, sample, kept steps, position, purpose, id).
The number of kept steps matters: after a rewrite shorter than the rejected draft, the next draft
covers positions whose draws were just rejected; reusing them would bias acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rsd_kernels.state.columns import number
from rsd_kernels.state.enums import Purpose
from rsd_kernels.state.slots import SlotState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.integer[Any]]  # uint64

Word = TypeVar("Word", int, "Words")

PURPOSE_BITS = 8  # of the counter's third word; the rest of it numbers blocks of four ids
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class DrawKey:
    """What a draw is for."""

    seed: int  # 64 bits
    sample: int
    num_steps: int  # kept so far
    position: int  # tokens before it
    purpose: Purpose

    @classmethod
    def of_slot(cls, state: SlotState, slot: int, position: int, purpose: Purpose) -> DrawKey:
        """For a token of a slot, or for the decision on its step."""
        return cls(
            seed=number(state.seed, slot),
            sample=number(state.sample_index, slot),
            num_steps=number(state.num_steps, slot),
            position=position,
            purpose=purpose,
        )

    def words(self, block: Word) -> tuple[Word, Word, Word, Word]:
        """The four random words of a block, or of each block of an array."""
        what = block << PURPOSE_BITS | int(self.purpose)
        counter: Any = (self.position, self.num_steps, what, self.sample)
        return philox(counter, (self.seed & _MASK, (self.seed >> 32) & _MASK))


def philox(
    counter: tuple[Word, Word, Word, Word], key: tuple[int, int]
) -> tuple[Word, Word, Word, Word]:
    """Ten rounds of Philox4x32 on 32-bit words, or on arrays of them."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(key: DrawKey) -> float:
    """A number in [0, 1) with 24 random bits, exact in float32 on every device."""
    return (key.words(0)[0] >> 8) * 2.0**-24
