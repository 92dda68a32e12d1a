"""Undo rejected tokens: `rollback` on plain tensors, for stacks with page tables of their own, and
`truncate_kv` on one slot of the state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rsd_kernels.rollback.checks import check_rollback
from rsd_kernels.state.columns import host, number, write_at
from rsd_kernels.state.enums import NUM_ROLES
from rsd_kernels.state.slots import SlotState, pages_for


def rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32: a stack, valid up to num_free
    num_free: Tensor,  # [1] int32
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Sequence[int],  # R values
) -> None:
    """Rolls back every (role, slot) to `keep` tokens of K/V, for R = 1 to 3 roles.

    kv_len = min(kv_len, keep); pages no longer needed go onto the stack, slot by slot, role by
    role, last page first.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_rollback(kv_len, num_pages, page_table, free_pages, num_free, keep, tokens_per_page)
    num_roles, num_slots = kv_len.shape
    free = int(num_free)
    for slot in range(num_slots):
        for role in range(num_roles):
            tokens = min(int(kv_len[role, slot]), int(keep[role, slot]))
            held = int(num_pages[role, slot])
            count = max(held - pages_for(tokens, tokens_per_page[role]), 0)
            returned = page_table[role, slot, held - count : held].flip(0)
            free_pages[free : free + count] = returned
            free += count
            num_pages[role, slot] = held - count
            kv_len[role, slot] = tokens
    num_free.fill_(free)


def truncate_kv(
    state: SlotState, slot: int, keep: Sequence[int], tokens_per_page: Sequence[int]
) -> None:
    """Rolls back one slot to `keep[role]` tokens of K/V and returns pages no longer needed.

    To finish, abort and preempt a request is this operation too. K and V themselves are not
    touched: what lies past `kv_len` is never read. A role that has read less stays where it is.
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
