"""`fork` in plain PyTorch: a slot becomes several."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rsd_kernels.fork.columns import CONTEXTS, LOGPROBS, forked_columns
from rsd_kernels.state.columns import add_at, host, number, write_at
from rsd_kernels.state.enums import NUM_ROLES, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.slots import SlotState


def fork(
    state: SlotState,
    pages: Tensor,  # [N, page_bytes] uint8: the pool
    source: int,
    targets: Sequence[int],
    tokens_per_page: Sequence[int],
) -> None:
    """Makes slots `targets`, which hold no pages, copies of slot `source`, between two launches.

    A target keeps what is its own: who sits in it, its group, its counters. Whole pages it shares
    with the source. A writer reads its last token again to sample from it, so that one counts as
    not read. The partial page is copied onto a page from the stack; where none is free, its tokens
    are read again.
    """
    for target in targets:
        _copy_columns(state, source, target)
        for role in range(NUM_ROLES):
            _share_pages(state, pages, role, source, target, tokens_per_page[role])


def _copy_columns(state: SlotState, source: int, target: int) -> None:
    guessed = max(number(state.length, source), number(state.guess_end, source))
    used = dict(zip(CONTEXTS, (guessed, number(state.prm_length, source)), strict=True))
    if number(state.num_logprobs, source) < 0:
        used |= dict.fromkeys(LOGPROBS, 0)
    for name in forked_columns():
        column: Tensor = getattr(state, name)
        values, size = host(column), used.get(name)
        if size is None:
            write_at(column, target, values[source])
        elif size:
            write_at(column, (target, slice(size)), values[source, :size])


def _share_pages(
    state: SlotState, pages: Tensor, role: int, source: int, target: int, tokens_per_page: int
) -> None:
    kv_len = number(state.kv_len, (role, source))
    if role != Role.PRM:
        kv_len = max(0, min(kv_len, number(state.length, source) - 1))
    whole = kv_len // tokens_per_page
    shared = host(state.page_table)[role, source, :whole].copy()
    add_at(state.page_owners, shared, 1)
    write_at(state.page_table, (role, target, slice(whole)), shared)
    write_at(state.num_pages, (role, target), whole)
    if kv_len % tokens_per_page and number(state.num_free) > 0:
        take_pages(state, role, target, 1)
        table = host(state.page_table)[role]
        pages[int(table[target, whole])] = pages[int(table[source, whole])]
    else:
        kv_len = whole * tokens_per_page
    write_at(state.kv_len, (role, target), kv_len)
