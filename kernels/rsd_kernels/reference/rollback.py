"""Rollback on plain tensors, for stacks that keep a page table of their own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rsd_kernels.reference.pages import pages_for

MAX_ROLES = 3


def rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32: a stack, valid up to num_free
    num_free: Tensor,  # [1] int32
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Sequence[int],  # R values
) -> None:
    """Forgets K/V past `keep` tokens of every (role, slot), R = 1 to 3 roles.

    kv_len = min(kv_len, keep); pages that hold none of the rest go onto the stack, slot by slot,
    role by role, last page first.

    Raises:
        ValueError: shapes that do not fit each other.
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


def check_rollback(
    kv_len: Tensor,
    num_pages: Tensor,
    page_table: Tensor,
    free_pages: Tensor,
    num_free: Tensor,
    keep: Tensor,
    tokens_per_page: Sequence[int],
) -> None:
    """Raises ValueError unless the shapes fit each other."""
    if kv_len.dim() != 2 or not 1 <= kv_len.shape[0] <= MAX_ROLES or kv_len.shape[1] == 0:
        raise ValueError(
            f"kv_len has shape {list(kv_len.shape)}; it must be [roles, slots] with 1 to "
            f"{MAX_ROLES} roles and at least one slot"
        )
    for name, tensor in (("num_pages", num_pages), ("keep", keep)):
        if tensor.shape != kv_len.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; it must be {list(kv_len.shape)}"
            )
    if page_table.dim() != 3 or page_table.shape[:2] != kv_len.shape:
        raise ValueError(
            f"page_table has shape {list(page_table.shape)}; it must be {[*kv_len.shape, 'pages']}"
        )
    if free_pages.dim() != 1:
        raise ValueError(f"free_pages has shape {list(free_pages.shape)}; it must be [pages]")
    if num_free.shape != (1,):
        raise ValueError(f"num_free has shape {list(num_free.shape)}; it must be [1]")
    if len(tokens_per_page) != kv_len.shape[0] or any(t < 1 for t in tokens_per_page):
        raise ValueError(
            f"tokens_per_page is {list(tokens_per_page)}; it must have {kv_len.shape[0]} "
            "positive values, one a role"
        )
