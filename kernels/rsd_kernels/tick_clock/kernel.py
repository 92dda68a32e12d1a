"""When ticks begin and end on the device. Profilers do not see into the loop of a graph.

Device functions: the first and the last op of a tick call them.

Twin: `rsd_kernels.tick_clock.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit
def begin_tick(state: tl.tuple, tick: tl.tensor, CLOCK: tl.constexpr) -> None:
    """Time since the end of the last tick was idle; the first tick of a launch has none before."""
    if CLOCK:
        now = globaltimer()
        idle = tl.load(state.idle_nanoseconds) + now - tl.load(state.tick_end)
        spent = tl.load(state.tick_nanoseconds) - now
        tl.debug_barrier()
        tl.store(state.idle_nanoseconds, idle, mask=tick > 1)
        tl.store(state.tick_nanoseconds, spent)


@triton.jit
def end_tick(state: tl.tuple, CLOCK: tl.constexpr) -> None:
    """Call it last in a tick."""
    if CLOCK:
        now = globaltimer()
        spent = tl.load(state.tick_nanoseconds) + now
        tl.debug_barrier()
        tl.store(state.tick_end, now)
        tl.store(state.tick_nanoseconds, spent)
