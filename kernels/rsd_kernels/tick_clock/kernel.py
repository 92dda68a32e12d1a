"""When ticks begin and end on the device: profilers do not see into a graph's loop, stamps do.

Twin: `rsd_kernels.tick_clock.twin`. Device functions: the first and last ops of a tick call
them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit
def begin_tick(state: tl.tuple, tick: tl.tensor, CLOCK: tl.constexpr) -> None:
    """The time since the last tick's end was idle; the first tick of a launch has none before."""
    if CLOCK:
        now = globaltimer()
        idle = tl.load(state.idle_nanoseconds) + now - tl.load(state.tick_end)
        spent = tl.load(state.tick_nanoseconds) - now
        tl.debug_barrier()
        tl.store(state.idle_nanoseconds, idle, mask=tick > 1)
        tl.store(state.tick_nanoseconds, spent)


@triton.jit
def end_tick(state: tl.tuple, CLOCK: tl.constexpr) -> None:
    """Called where nothing of the tick comes after."""
    if CLOCK:
        now = globaltimer()
        spent = tl.load(state.tick_nanoseconds) + now
        tl.debug_barrier()
        tl.store(state.tick_end, now)
        tl.store(state.tick_nanoseconds, spent)
