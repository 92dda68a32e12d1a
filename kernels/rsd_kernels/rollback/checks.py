"""Checks of the arguments of rollback, for the kernel and its twin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

MAX_ROLES = 3


def check_rollback(
    kv_len: Tensor,
    num_pages: Tensor,
    page_table: Tensor,
    free_pages: Tensor,
    num_free: Tensor,
    page_owners: Tensor,
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
    if page_owners.shape != free_pages.shape:
        raise ValueError(
            f"page_owners has shape {list(page_owners.shape)}; it must be "
            f"{list(free_pages.shape)}, one for each page"
        )
    if num_free.shape != (1,):
        raise ValueError(f"num_free has shape {list(num_free.shape)}; it must be [1]")
    if len(tokens_per_page) != kv_len.shape[0] or any(t < 1 for t in tokens_per_page):
        raise ValueError(
            f"tokens_per_page is {list(tokens_per_page)}; it must have {kv_len.shape[0]} "
            "positive values, one for each role"
        )
