"""Plain-PyTorch twin of the store of new K and V into pages."""

from __future__ import annotations

from torch import Tensor


def kv_write(
    k: Tensor,  # [N, num_kv_heads, head_dim]
    v: Tensor,  # [N, num_kv_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [N] int32; rows with a negative page are not stored
    offset: Tensor,  # [N] int32
) -> None:
    """Writes row n to token `offset[n]` of page `page[n]`. No two rows may name one place."""
    if page.numel() and int(page.min()) < 0:
        kept = (page >= 0).nonzero().squeeze(1)
        k, v, page, offset = k[kept], v[kept], page[kept], offset[kept]
    k_pages[page, offset] = k
    v_pages[page, offset] = v
