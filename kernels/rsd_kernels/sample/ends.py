"""What ends a writer's tick in the loop: its steps that have ended go on. Device functions.

The program that appended a slot's token brings its step to the PRM's context; the last program of
the launch to arrive deals with the ended steps of all slots.

Twin: `rsd_kernels.write.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.arrival import last_to_arrive
from rsd_kernels.bridge.kernel import CHUNK, bridge_slot, wait_for_host
from rsd_kernels.end_step.kernel import STEP_CHUNK, end_steps
from rsd_kernels.retokenise.kernel import settle_ends
from rsd_kernels.tick_clock.kernel import end_tick

_CHUNK = tl.constexpr(CHUNK)
_STEP_CHUNK = tl.constexpr(STEP_CHUNK)


@triton.jit
def pass_on_step(
    state: tl.tuple,
    tables: tl.tuple,
    merges: tl.tuple,  # None: the host brings steps to the PRM, through text
    words: tl.tensor,  # of `bridge_scratch`
    slot: tl.tensor,  # a token has just been appended to it
    DECIDES: tl.constexpr,  # ConfidenceKind by which steps are decided: no PRM reads them
) -> None:
    """Brings the slot's step to the PRM, if it has ended."""
    if DECIDES == 0:
        tl.debug_barrier()  # every warp has written how the step ended
        if merges is None:
            wait_for_host(state, slot)
        else:
            bridge_slot(state, tables, merges, words, slot, _CHUNK)


@triton.jit
def end_tick_of_writer(
    state: tl.tuple,
    arrived: tl.tensor,
    count: tl.tensor,  # programs that call this
    tokens_per_page: tl.tuple,
    end_tables: tl.tuple,  # None: the ends of kept steps stay as they were written
    end_merges: tl.tuple,
    words: tl.tensor,
    DECIDES: tl.constexpr,
    BLOCK_S: tl.constexpr,  # at least the slots
    CLOCK: tl.constexpr,
) -> None:
    """The last program deals with every ended step, and the tick is over."""
    if last_to_arrive(arrived, count):
        b_slot = tl.arange(0, BLOCK_S)
        m_slot = b_slot < state.num_slots
        logs = end_steps(state, b_slot, m_slot, tokens_per_page, True, DECIDES, _STEP_CHUNK)
        if end_tables is not None:  # noqa: SIM102 - decided when this is compiled
            if logs:  # in most ticks nothing is kept
                settle_ends(state, end_tables, end_merges, words, BLOCK_S, _CHUNK)
        end_tick(state, CLOCK)
