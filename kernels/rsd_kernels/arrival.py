"""The last program of a launch to arrive goes on with what the others left: no launch of its own.

A device function. Which program comes last does not matter where what it does depends on what is
there alone, in an order of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(
    arrived: tl.tensor,  # a pointer to int32: 0 before the launch, and after it
    count: tl.tensor,  # programs that arrive there
) -> tl.tensor:
    """Whether all others have arrived before; what they stored can then be read.

    The barrier lets every thread store before the program arrives, and the atomic operation makes
    it visible (release) to the program that arrives last (acquire), and to all its threads, which
    wait for the result.
    """
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == count - 1
    tl.atomic_xchg(arrived, 0, mask=last, sem="relaxed")
    return last
