"""Pages of one slot, taken and given up: what twins and the host do between launches."""

from __future__ import annotations

from rsd_kernels.state.columns import add_at, host, number, write_at
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotState


def take_pages(state: SlotState, role: int, slot: int, count: int) -> None:
    """Moves `count` pages from the stack to the end of a page table; the caller checked both."""
    if count <= 0:
        return
    free, held = number(state.num_free), number(state.num_pages, (role, slot))
    taken = host(state.free_pages)[free - count : free][::-1].copy()
    write_at(state.page_table, (role, slot, slice(held, held + count)), taken)
    write_at(state.num_pages, (role, slot), held + count)
    write_at(state.num_free, 0, free - count)
    write_at(state.page_owners, taken, 1)
    add_at(state.page_stamp, taken, 1)


def give_up_pages(state: SlotState, role: int, slot: int, kept: int) -> None:
    """Gives up all but the first `kept` pages, last first; those without owners are free."""
    held = number(state.num_pages, (role, slot))
    if held <= kept:
        return
    pages = host(state.page_table)[role, slot, kept:held][::-1].copy()
    add_at(state.page_owners, pages, -1)
    freed = pages[host(state.page_owners)[pages] == 0]
    free = number(state.num_free)
    write_at(state.free_pages, slice(free, free + len(freed)), freed)
    write_at(state.num_free, 0, free + len(freed))
    write_at(state.num_pages, (role, slot), kept)


def own_page(state: SlotState, kv: Role, b: int, start: int, tokens_per_page: int) -> int:
    """Where to go on so that no page is written that others own too: they keep it, and its tokens
    are read again."""
    index = start // tokens_per_page
    if index >= number(state.num_pages, (kv, b)):
        return start
    if number(state.page_owners, number(state.page_table, (kv, b, index))) == 1:
        return start
    give_up_pages(state, kv, b, index)
    start = index * tokens_per_page
    write_at(state.kv_len, (kv, b), min(number(state.kv_len, (kv, b)), start))
    return start
