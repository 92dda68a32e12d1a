"""The twin of attention against a formula in float64, with NaN wherever memory is stale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rsd_kernels.attention.twin import attention_map, paged_attention
from rsd_kernels.state.rows import RowBatch
from tests.kernels.harness.tensors import strided_pages

NAN = float("nan")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def one_row(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention of one row in float64: q [heads, D], keys and values [L, kv_heads, D]."""
    out = []
    for head in range(q.shape[0]):
        kv_head = head // (q.shape[0] // keys.shape[1])
        scores = [math.exp(float(q[head] @ key[kv_head]) * scale) for key in keys]
        weighted = sum(s * value[kv_head] for s, value in zip(scores, values, strict=True))
        out.append(weighted / sum(scores))
    return torch.stack(out)


CASES = {
    "one decode row": [(1, 14)],
    "first token": [(1, 1)],
    "decode rows of unequal length": [(1, 14), (1, 1), (1, 9)],
    "decode rows of equal length": [(1, 10), (1, 10)],
    "fresh prompt": [(9, 9)],
    "chunk after history": [(4, 15)],
    "chunk on a page edge": [(5, 10)],
    "mixed": [(1, 7), (1, 15), (3, 12), (6, 6)],
    "decode rows apart": [(1, 7), (3, 12), (1, 11)],
    "a sequence without rows": [(1, 7), (0, 4), (2, 6)],
}


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("case", list(CASES))
def test_paged_attention(case: str, num_heads: int, num_kv_heads: int, window: int | None) -> None:
    """Rows are (new rows, tokens in all); every place that holds no token of them is NaN."""
    sizes, per_page, width, scale = CASES[case], 5, 8, 0.4
    _, k_pages, v_pages = strided_pages(16, per_page, num_kv_heads, width, torch.float32)
    table = torch.full((6, 4), 2**30, dtype=torch.int32)  # entries past the last page are garbage
    slots, pages = [4, 0, 5, 2], torch.randperm(16)[:12].view(4, 3).int()
    starts, keys, values = [0], [], []
    for s, (num_rows, kv_len) in enumerate(sizes):
        used = -(-kv_len // per_page)
        table[slots[s], :used] = pages[s, :used]
        k, v = torch.randn(2, kv_len, num_kv_heads, width)
        for j in range(kv_len):
            place = int(pages[s, j // per_page]), j % per_page
            k_pages[place], v_pages[place] = k[j], v[j]
        keys.append(k.double())
        values.append(v.double())
        starts.append(starts[-1] + num_rows)
    batch = RowBatch.allocate(starts[-1], len(sizes), torch.device("cpu"))
    batch.seq_slot.copy_(torch.tensor(slots[: len(sizes)]))
    batch.seq_start.copy_(torch.tensor(starts))
    batch.seq_kv_len.copy_(torch.tensor([kv_len for _, kv_len in sizes]))
    q = torch.randn(starts[-1], num_heads, width)
    out = torch.full_like(q, NAN)
    key_map = attention_map(batch, table, per_page, window, torch.float32)
    assert paged_attention(q, k_pages, v_pages, key_map, scale=scale, out=out) is out
    for s, (num_rows, kv_len) in enumerate(sizes):
        for i in range(num_rows):
            row, last = starts[s] + i, kv_len - num_rows + i
            seen = slice(0 if window is None else max(0, last + 1 - window), last + 1)
            wanted = one_row(q[row].double(), keys[s][seen], values[s][seen], scale)
            torch.testing.assert_close(out[row].double(), wanted, rtol=0, atol=2e-6)


def test_rows_of_no_sequence_are_left_alone() -> None:
    """A padded bucket: two rows, of which one belongs to a sequence."""
    _, k_pages, v_pages = strided_pages(1, 5, 1, 8, torch.float32)
    k_pages[0, 0], v_pages[0, 0] = 1.0, 2.0
    batch = RowBatch.allocate(2, 1, torch.device("cpu"))
    batch.seq_start.copy_(torch.tensor([0, 1]))
    batch.seq_kv_len.fill_(1)
    out = torch.full((2, 1, 8), 7.0)
    key_map = attention_map(batch, torch.zeros(1, 1).int(), 5, None, torch.float32)
    paged_attention(torch.randn(2, 1, 8), k_pages, v_pages, key_map, scale=1.0, out=out)
    assert torch.equal(out, torch.tensor([2.0, 7.0])[:, None, None].expand(2, 1, 8))
