"""Plain-PyTorch twin of attention over paged K and V, decode rows and chunks in one call.

What depends only on the batch (which pages to gather, which keys to mask) is computed once a pass,
in an `AttentionMap`, and used by every layer. All sequences with one new row share a call; a
sequence with more rows (a chunk) has its own. Keys and values past a sequence's length are dropped
or zeroed before any arithmetic, since stale memory may hold NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from rsd_kernels.attention.map import AttentionGroup, AttentionMap
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import pages_for


def attention_map(
    batch: RowBatch,
    page_table: Tensor,  # [B, P] int32
    tokens_per_page: int,
    sliding_window: int | None,
    dtype: torch.dtype,
) -> AttentionMap:
    """The map of one pass; `dtype` is that of the queries."""
    starts, kv_lens = batch.seq_start.tolist(), batch.seq_kv_len.tolist()
    sizes = [end - start for start, end in pairwise(starts)]
    tables = page_table[batch.seq_slot].long().cpu()
    builder = _GroupBuilder(tables, kv_lens, tokens_per_page, sliding_window, dtype)
    decode = [s for s, size in enumerate(sizes) if size == 1]
    groups = [builder.decode(decode, [starts[s] for s in decode])] if decode else []
    groups += [builder.chunk(s, starts[s], size) for s, size in enumerate(sizes) if size > 1]
    device = page_table.device
    if device.type != "cpu":
        groups = [group.to(device) for group in groups]
    return AttentionMap(batch, page_table, tokens_per_page, sliding_window, tuple(groups))


@dataclass(frozen=True)
class _GroupBuilder:
    tables: Tensor  # [S, P] int64
    kv_lens: list[int]  # [S]
    tokens_per_page: int
    sliding_window: int | None
    dtype: torch.dtype

    def decode(self, seqs: list[int], rows: list[int]) -> AttentionGroup:
        """Sequences with one new row each; shorter ones are padded to the longest."""
        firsts = [self._first_key(s, num_rows=1) for s in seqs]
        skipped = [first // self.tokens_per_page for first in firsts]
        ends = [
            self.kv_lens[s] - skip * self.tokens_per_page
            for s, skip in zip(seqs, skipped, strict=True)
        ]
        begins = [
            first - skip * self.tokens_per_page for first, skip in zip(firsts, skipped, strict=True)
        ]
        num_pages = pages_for(max(ends), self.tokens_per_page)
        pages = torch.stack(
            [self._pages(s, skip, num_pages) for s, skip in zip(seqs, skipped, strict=True)]
        )
        key = torch.arange(num_pages * self.tokens_per_page)
        end, begin = torch.tensor(ends)[:, None], torch.tensor(begins)[:, None]
        low, high = min(begins), max(ends)
        masked = ((key < begin) | (key >= end))[:, low:high]
        return AttentionGroup(
            rows=_as_slice(rows),
            num_seqs=len(seqs),
            pages=pages.flatten(),
            first=low,
            num_keys=high - low,
            stale=_indices(key >= end) if len(seqs) > 1 else None,
            mask=self._mask(masked[:, None, None, :]),
            causal=False,
        )

    def chunk(self, seq: int, row: int, num_rows: int) -> AttentionGroup:
        """One sequence with several new rows, which see each other causally and all keys before."""
        kv_len = self.kv_lens[seq]
        first = self._first_key(seq, num_rows)
        skip = first // self.tokens_per_page
        num_pages = pages_for(kv_len, self.tokens_per_page) - skip
        key = torch.arange(first, kv_len)
        position = torch.arange(kv_len - num_rows, kv_len)[:, None]
        masked = key > position
        if self.sliding_window is not None:
            masked |= key <= position - self.sliding_window
        causal = num_rows == kv_len and kv_len <= (self.sliding_window or kv_len)
        return AttentionGroup(
            rows=slice(row, row + num_rows),
            num_seqs=1,
            pages=self._pages(seq, skip, num_pages),
            first=first - skip * self.tokens_per_page,
            num_keys=kv_len - first,
            stale=None,
            mask=None if causal else self._mask(masked[None, None]),
            causal=causal,
        )

    def _first_key(self, seq: int, num_rows: int) -> int:
        """The first key that the first of `num_rows` new rows sees."""
        if self.sliding_window is None:
            return 0
        return max(0, self.kv_lens[seq] - num_rows + 1 - self.sliding_window)

    def _pages(self, seq: int, skip: int, count: int) -> Tensor:
        """`count` pages of a sequence from page `skip` on; past its end, the last one again."""
        last = (self.kv_lens[seq] - 1) // self.tokens_per_page
        wanted = torch.arange(skip, skip + count).clamp_(max=last)
        return self.tables[seq].index_select(0, wanted)

    def _mask(self, masked: Tensor) -> Tensor | None:
        if not bool(masked.any()):
            return None
        return torch.zeros(masked.shape, dtype=self.dtype).masked_fill_(masked, float("-inf"))


def paged_attention(
    q: Tensor,  # [N, num_q_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    key_map: AttentionMap,
    *,
    scale: float,
    out: Tensor,  # [N, num_q_heads, head_dim]
    ahead: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ * scale) v of every row over the keys of its sequence up to itself.

    The pages must hold K and V of the new rows already. Query head h reads K/V head
    h // (num_q_heads // num_kv_heads). Rows of `out` that belong to no sequence are left alone.

    ahead: a matrix that the pass reads soon, for the kernel alone.
    """
    del ahead
    num_kv_heads, head_dim = k_pages.shape[-2:]
    for group in key_map.groups:
        k = _gather(k_pages, group)
        v = _gather(v_pages, group)
        shape = (group.num_seqs, -1, num_kv_heads, q.shape[1] // num_kv_heads, head_dim)
        result = _attend(q[group.rows].view(shape), k, v, group, scale)
        out[group.rows] = result.reshape(-1, q.shape[1], head_dim)
    return out


def _attend(
    q: Tensor,  # [S, n, num_kv_heads, heads a K/V head, head_dim]
    k: Tensor,  # [S, L, num_kv_heads, head_dim]
    v: Tensor,  # [S, L, num_kv_heads, head_dim]
    group: AttentionGroup,
    scale: float,
) -> Tensor:  # [S, n, num_kv_heads, heads a K/V head, head_dim]
    """One fused call; K and V are not copied for each of the query heads that share them."""
    attention = functional.scaled_dot_product_attention
    if q.shape[1] == 1:  # the heads that share a K/V head take the place of rows
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        result = attention(q.squeeze(1), k, v, attn_mask=group.mask, scale=scale)
        return result.unsqueeze(1)
    heads = q.shape[3]  # S == 1: K/V heads take the place of sequences
    k = k[0].transpose(0, 1)[:, None].expand(-1, heads, -1, -1)
    v = v[0].transpose(0, 1)[:, None].expand(-1, heads, -1, -1)
    result = attention(
        q[0].permute(1, 2, 0, 3), k, v, attn_mask=group.mask, is_causal=group.causal, scale=scale
    )
    return result.permute(2, 0, 1, 3)[None]


def _gather(pages: Tensor, group: AttentionGroup) -> Tensor:
    """The keys or values of a group: [S, L, num_kv_heads, head_dim]."""
    gathered = pages.index_select(0, group.pages)
    if group.stale is not None:
        gathered.view(-1, *pages.shape[2:]).index_fill_(0, group.stale, 0.0)
    keys = gathered.view(group.num_seqs, -1, *pages.shape[2:])
    return keys[:, group.first : group.first + group.num_keys]


def _as_slice(rows: list[int]) -> Tensor | slice:
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows)


def _indices(flags: Tensor) -> Tensor | None:
    return flags.flatten().nonzero().squeeze(1) if bool(flags.any()) else None
