"""Undo rejected tokens: `rollback` on plain tensors, for stacks with page tables of their own, and
`truncate_kv` on one slot of the state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rsd_kernels.rollback.checks import check_rollback
from rsd_kernels.state.columns import number, write_at
from rsd_kernels.state.enums import NUM_ROLES
from rsd_kernels.state.pages import give_up_pages
from rsd_kernels.state.slots import SlotState, pages_for


def rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32: a stack, valid up to num_free
    num_free: Tensor,  # [1] int32
    page_owners: Tensor,  # [N] int32: page tables that name a page
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Sequence[int],  # R values
) -> None:
    """Rolls back every (role, slot) to `keep` tokens of K/V, for R = 1 to 3 roles.

    kv_len = min(kv_len, keep). Pages no longer needed are given up, slot by slot, role by role,
    last page first; one that nobody else owns goes onto the stack.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_rollback(
        kv_len, num_pages, page_table, free_pages, num_free, page_owners, keep, tokens_per_page
    )
    num_roles, num_slots = kv_len.shape
    free = int(num_free)
    for slot in range(num_slots):
        for role in range(num_roles):
            tokens = min(int(kv_len[role, slot]), int(keep[role, slot]))
            held = int(num_pages[role, slot])
            count = max(held - pages_for(tokens, tokens_per_page[role]), 0)
            for page in page_table[role, slot, held - count : held].flip(0).tolist():
                page_owners[page] -= 1
                if page_owners[page] == 0:
                    free_pages[free] = page
                    free += 1
            num_pages[role, slot] = held - count
            kv_len[role, slot] = tokens
    num_free.fill_(free)


def truncate_kv(
    state: SlotState, slot: int, keep: Sequence[int], tokens_per_page: Sequence[int]
) -> None:
    """Rolls back one slot to `keep[role]` tokens of K/V and gives up pages no longer needed.

    To finish, abort and preempt a request is this operation too. K and V themselves are not
    touched: what lies past `kv_len` is never read. A role that has read less stays where it is.
    """
    for role in range(NUM_ROLES):
        kv_len = min(number(state.kv_len, (role, slot)), keep[role])
        give_up_pages(state, role, slot, pages_for(kv_len, tokens_per_page[role]))
        write_at(state.kv_len, (role, slot), kv_len)
