"""Pages on and off the stack of free pages: the only code that moves them."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_kernels.slot_state import NUM_ROLES, SlotState


def pages_for(num_tokens: int, tokens_per_page: int) -> int:
    """Pages that `num_tokens` tokens occupy."""
    return -(-num_tokens // tokens_per_page)


def take_pages(state: SlotState, role: int, slot: int, count: int) -> None:
    """Moves `count` pages from the stack to the end of a page table; the caller checked both."""
    if count <= 0:
        return
    free, held = int(state.num_free), int(state.num_pages[role, slot])
    taken = state.free_pages[free - count : free].flip(0)
    state.page_table[role, slot, held : held + count] = taken
    state.num_pages[role, slot] = held + count
    state.num_free.sub_(count)


def truncate_kv(
    state: SlotState, slot: int, keep: Sequence[int], tokens_per_page: Sequence[int]
) -> None:
    """Forgets K/V past `keep[role]` tokens and returns pages that hold none of the rest.

    Rollback, finish, abort and preempt are this operation. No K/V byte is touched: rows past
    `kv_len` are never trusted. A role that lags behind `keep` keeps its lag.
    """
    for role in range(NUM_ROLES):
        kv_len = min(int(state.kv_len[role, slot]), keep[role])
        held = int(state.num_pages[role, slot])
        count = held - pages_for(kv_len, tokens_per_page[role])
        if count > 0:
            free = int(state.num_free)
            returned = state.page_table[role, slot, held - count : held].flip(0)
            state.free_pages[free : free + count] = returned
            state.num_pages[role, slot] = held - count
            state.num_free.add_(count)
        state.kv_len[role, slot] = kv_len
