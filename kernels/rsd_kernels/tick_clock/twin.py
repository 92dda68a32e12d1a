"""When ticks begin and end: how long they take, and how long the loop idles between them."""

from __future__ import annotations

import time

from rsd_kernels.state.columns import add_at, number, write_at
from rsd_kernels.state.slots import SlotState


def begin_tick(state: SlotState) -> None:
    """Time since the end of the last tick was idle; the first tick of a launch has none before."""
    now = time.perf_counter_ns()
    if number(state.tick) > 1:
        add_at(state.idle_nanoseconds, 0, now - number(state.tick_end))
    add_at(state.tick_nanoseconds, 0, -now)


def end_tick(state: SlotState) -> None:
    """Call it last in a tick."""
    now = time.perf_counter_ns()
    write_at(state.tick_end, 0, now)
    add_at(state.tick_nanoseconds, 0, now)
