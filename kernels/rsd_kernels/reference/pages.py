"""Pages on and off the stack of free pages: the only code that moves them."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_kernels.reference.columns import host, number, write_at
from rsd_kernels.slot_state import NUM_ROLES, SlotState


def pages_for(num_tokens: int, tokens_per_page: int) -> int:
    """Pages that `num_tokens` tokens occupy."""
    return -(-num_tokens // tokens_per_page)


def take_pages(state: SlotState, role: int, slot: int, count: int) -> None:
    """Moves `count` pages from the stack to the end of a page table; the caller checked both."""
    if count <= 0:
        return
    free, held = number(state.num_free), number(state.num_pages, (role, slot))
    taken = host(state.free_pages)[free - count : free][::-1].copy()
    write_at(state.page_table, (role, slot, slice(held, held + count)), taken)
    write_at(state.num_pages, (role, slot), held + count)
    write_at(state.num_free, 0, free - count)


def truncate_kv(
    state: SlotState, slot: int, keep: Sequence[int], tokens_per_page: Sequence[int]
) -> None:
    """Forgets K/V past `keep[role]` tokens and returns pages that hold none of the rest.

    Rollback, finish, abort and preempt are this operation. No K/V byte is touched: rows past
    `kv_len` are never trusted. A role that lags behind `keep` keeps its lag.
    """
    for role in range(NUM_ROLES):
        kv_len = min(number(state.kv_len, (role, slot)), keep[role])
        held = number(state.num_pages, (role, slot))
        count = held - pages_for(kv_len, tokens_per_page[role])
        if count > 0:
            free = number(state.num_free)
            returned = host(state.page_table)[role, slot, held - count : held][::-1].copy()
            write_at(state.free_pages, slice(free, free + count), returned)
            write_at(state.num_pages, (role, slot), held - count)
            write_at(state.num_free, 0, free + count)
        write_at(state.kv_len, (role, slot), kv_len)
