"""One byte buffer for the K and V of all models, cut into pages of equal size.

A page belongs to one role at a time, in one slot or several, and holds K and V of its layers for
`page_bytes // bytes_per_token` tokens, so pages move freely between models whose tokens differ in
size. The K or V of a layer is a strided view; nothing is ever copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVShape:
    """What one token of one model needs in the pool."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def tokens_in(self, page_bytes: int, page_multiple: int = 1) -> int:
        """Tokens that a page holds: as many multiples of `page_multiple` as fit."""
        return page_bytes // (self.bytes_per_token * page_multiple) * page_multiple


@dataclass(frozen=True)
class PagedKV:
    """The K/V of one role in the pool, as strided views of its pages."""

    k: tuple[Tensor, ...]  # per layer: [num_pages, tokens_per_page, num_kv_heads, head_dim]
    v: tuple[Tensor, ...]  # per layer: [num_pages, tokens_per_page, num_kv_heads, head_dim]
    tokens_per_page: int


class PagePool:
    """The byte buffer. The slot state, not the pool, knows which page belongs to whom.

    Args:
        num_pages: pages in the pool.
        page_bytes: bytes of a page; a multiple of 256, so that every page is aligned.
        device: where the buffer lives.
        page_multiple: the tokens of a page are a multiple of this, for every role.
    """

    def __init__(
        self, num_pages: int, page_bytes: int, device: torch.device, page_multiple: int = 1
    ) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, got {num_pages}")
        if page_bytes < 256 or page_bytes % 256:
            raise ValueError(f"page_bytes must be a positive multiple of 256, got {page_bytes}")
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        self.page_multiple = page_multiple
        self.buffer = torch.empty(num_pages * page_bytes, dtype=torch.uint8, device=device)

    @property
    def pages(self) -> Tensor:
        """[num_pages, page_bytes] uint8."""
        return self.buffer.view(self.num_pages, self.page_bytes)

    def tokens_per_page(self, shape: KVShape) -> int:
        return shape.tokens_in(self.page_bytes, self.page_multiple)

    def view(self, shape: KVShape) -> PagedKV:
        """K and V of one role. In pages of other roles the views show meaningless numbers.

        Raises:
            ValueError: a page cannot hold one token of this shape (or `page_multiple` of them).
        """
        tokens = self.tokens_per_page(shape)
        if tokens < 1:
            wanted = "token" if self.page_multiple == 1 else f"{self.page_multiple} tokens"
            raise ValueError(
                f"page_bytes={self.page_bytes} holds no {wanted} of {shape.bytes_per_token} bytes"
            )
        typed = self.buffer.view(shape.dtype)
        page_stride = self.page_bytes // shape.dtype.itemsize
        token_stride = shape.num_kv_heads * shape.head_dim
        plane = tokens * token_stride  # K or V of one layer inside a page

        def layer(index: int) -> Tensor:
            return typed.as_strided(
                (self.num_pages, tokens, shape.num_kv_heads, shape.head_dim),
                (page_stride, token_stride, shape.head_dim, 1),
                index * plane,
            )

        return PagedKV(
            k=tuple(layer(2 * i) for i in range(shape.num_layers)),
            v=tuple(layer(2 * i + 1) for i in range(shape.num_layers)),
            tokens_per_page=tokens,
        )
