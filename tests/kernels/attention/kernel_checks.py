"""Paged attention in Triton against its twin. Run by `test_kernel.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_kernels.attention import attend, kernel
from rsd_kernels.attention import tiles as attention_tiles
from rsd_kernels.attention.map import AttentionMap, AttentionScratch
from rsd_kernels.attention.twin import attention_map
from rsd_kernels.attention.twin import paged_attention as twin
from rsd_kernels.state.rows import RowBatch
from tests.kernels.harness.broken import broken
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE, DOT_DTYPES, assert_close, far_pages

MAX_PAGES = 24


@dataclass
class Case:
    """Sequences of (new rows, tokens attended to); pages scattered, everything else NaN."""

    sequences: list[tuple[int, int]]
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    tokens_per_page: int = 5
    window: int | None = None
    dtype: torch.dtype = torch.float32
    padding_rows: int = 0
    padding_seqs: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(len(self.sequences) * 131 + self.head_dim)
        heads, size = self.num_kv_heads, self.head_dim
        num_slots = len(self.sequences) + 2
        num_pages = num_slots * MAX_PAGES
        nowhere = num_pages  # a page of NaN, where the unused part of a page table points
        # K and V of two layers in one page, with a gap: what a page of the pool looks like.
        pages = torch.full((num_pages + 1, 4, self.tokens_per_page, heads, size + 8), float("nan"))
        order = torch.randperm(num_pages, generator=generator).view(num_slots, MAX_PAGES)
        slots = torch.randperm(num_slots, generator=generator)[: len(self.sequences)].tolist()
        self.table = torch.full((num_slots, MAX_PAGES + 3), nowhere, dtype=torch.int32)
        for slot, (_, kv_len) in zip(slots, self.sequences, strict=True):
            used = -(-kv_len // self.tokens_per_page)
            self.table[slot, :used] = order[slot, :used]
            for key in range(kv_len):
                page = order[slot, key // self.tokens_per_page]
                pages[page, 2:, key % self.tokens_per_page, :, :size] = torch.randn(
                    2, heads, size, generator=generator
                )
        pages = pages.to(self.dtype)
        self.k, self.v = pages[:, 2, ..., :size], pages[:, 3, ..., :size]
        self.num_rows = sum(rows for rows, _ in self.sequences)
        self.q = torch.randn(
            self.num_rows + self.padding_rows, self.num_q_heads + 3, size, generator=generator
        ).to(self.dtype)[:, : self.num_q_heads]
        self.batch = self._batch(slots)

    def _batch(self, slots: list[int]) -> RowBatch:
        rows = [rows for rows, _ in self.sequences]
        batch = RowBatch.allocate(
            self.num_rows + self.padding_rows,
            len(slots) + self.padding_seqs,
            torch.device("cpu"),
        )
        batch.seq_start.fill_(self.num_rows)
        batch.seq_start[0] = 0
        batch.seq_start[1 : len(rows) + 1] = torch.tensor(rows).cumsum(0)
        batch.seq_slot[: len(slots)] = torch.tensor(slots)
        batch.seq_kv_len[: len(slots)] = torch.tensor([kv_len for _, kv_len in self.sequences])
        return batch

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def by_twin(self, dtype: torch.dtype) -> Tensor:
        """The rows that belong to a sequence; the twin takes no empty sequences."""
        used = [s for s, (rows, _) in enumerate(self.sequences) if rows]
        rows = torch.tensor([self.sequences[s][0] for s in used])
        batch = RowBatch.allocate(self.num_rows, len(used), torch.device("cpu"))
        batch.seq_start[1:] = rows.cumsum(0)
        batch.seq_slot.copy_(self.batch.seq_slot[used])
        batch.seq_kv_len.copy_(self.batch.seq_kv_len[used])
        q = self.q[: self.num_rows].to(dtype)
        k, v = self.k.to(dtype), self.v.to(dtype)
        keys = attention_map(batch, self.table, self.tokens_per_page, self.window, dtype)
        return twin(
            q.contiguous(), k, v, keys, scale=self.scale, out=torch.empty(q.shape, dtype=dtype)
        )

    def by_matrices(self, dtype: torch.dtype) -> Tensor:
        """The rows that belong to a sequence, from whole score matrices."""
        out, row = torch.empty(self.num_rows, *self.q.shape[1:], dtype=dtype), 0
        share = self.num_q_heads // self.num_kv_heads
        for slot, (rows, kv_len) in zip(self.batch.seq_slot.tolist(), self.sequences, strict=False):
            where = torch.arange(kv_len), torch.arange(kv_len - rows, kv_len)[:, None]
            seen = where[0] <= where[1]
            if self.window is not None:
                seen &= where[0] > where[1] - self.window
            page = self.table[slot, where[0] // self.tokens_per_page].long()
            k, v = (
                t[page, where[0] % self.tokens_per_page].to(dtype).repeat_interleave(share, 1)
                for t in (self.k, self.v)
            )
            q = self.q[row : row + rows].to(dtype)
            score = torch.einsum("nhd,lhd->hnl", q, k) * self.scale
            weight = score.masked_fill(~seen, float("-inf")).softmax(-1)
            out[row : row + rows] = torch.einsum("hnl,lhd->nhd", weight, v)
            row += rows
        return out

    def scratch(self) -> AttentionScratch:
        """NaN, but for the counters."""
        heads = (self.num_q_heads, self.num_kv_heads, self.head_dim)
        made = attention_tiles.attention_scratch(self.q.shape[0], *heads, self.dtype, DEVICE)
        for part in (made.part, made.part_max, made.part_sum):
            part.fill_(torch.nan)
        return made

    def by_kernel(self, scratch: AttentionScratch | None = None) -> Tensor:
        """All rows; scratch but for its counters, and `out` before the call, are NaN."""
        scratch = scratch or self.scratch()
        key_map = AttentionMap(
            batch=RowBatch(**{name: t.to(DEVICE) for name, t in vars(self.batch).items()}),
            page_table=self.table.to(DEVICE),
            tokens_per_page=self.tokens_per_page,
            sliding_window=self.window,
            groups=(),
            scratch=scratch,
        )
        shape = (self.q.shape[0], self.num_q_heads, self.head_dim)
        out = torch.full(shape, torch.nan, dtype=self.dtype, device=DEVICE)
        q, k, v = (t.to(DEVICE) if t.device != DEVICE else t for t in (self.q, self.k, self.v))
        result = kernel.paged_attention(q, k, v, key_map, scale=self.scale, out=out)
        assert result is out
        assert not scratch.arrived.any(), "a counter is not 0 again"
        return out.cpu()


def check(case: Case, scratch: AttentionScratch | None = None) -> None:
    result = case.by_kernel(scratch)
    assert bool(result[case.num_rows :].isnan().all()), "a row of no sequence was written"
    exact = case.by_matrices(torch.float64)
    plain = case.by_twin(case.dtype)
    assert_close(result[: case.num_rows], plain, exact, num_terms=case.head_dim)


def wide(**changes: Any) -> Case:
    """More than 16 rows: the tiles for chunks."""
    return Case([(1, 1), (1, 37), (19, 40), (1, 5)], **changes)


CASES = {
    "first token": Case([(1, 1)]),
    "one row": Case([(1, 67)]),
    "full pages": Case([(1, 30), (1, 5), (1, 60)]),
    "decode": Case([(1, 3), (1, 96), (1, 41), (1, 1), (1, 64)]),
    "chunks": Case([(1, 33), (3, 3), (4, 70), (2, 9)]),
    "empty sequences": Case([(0, 0), (1, 31), (0, 7), (2, 40), (0, 0)]),
    "no rows": Case([(0, 0)]),
    "padding": Case([(1, 31), (2, 8)], padding_rows=5, padding_seqs=3),
    "many sequences": Case([(1, 4 + s) for s in range(16)], num_q_heads=2, head_dim=16),
    "window": Case([(1, 61), (4, 33), (3, 3)], window=9),
    "window of one": Case([(1, 20), (3, 20)], window=1),
    "one token a page": Case([(1, 9), (3, 12)], tokens_per_page=1),
    "page of 16": Case([(1, 33), (5, 48)], tokens_per_page=16),
    "page of 37": Case([(1, 75), (2, 37)], tokens_per_page=37),
    "group of 7": Case([(1, 33), (3, 48)], num_q_heads=14),
    "group of 1": Case([(1, 33), (3, 48)], num_q_heads=3, num_kv_heads=3),
    "group of 24": Case([(1, 33), (2, 48)], num_q_heads=24, num_kv_heads=1, head_dim=16),
    "head of 80": Case([(1, 35), (2, 17)], head_dim=80),
    "head of 96": Case([(1, 35), (2, 17)], head_dim=96),
    "head of 128": Case([(1, 35), (2, 17)], head_dim=128),
    "head of 256": Case([(1, 35)], head_dim=256),
    "long chunk": wide(),
    "long chunk, window": wide(window=11, num_q_heads=6),
    "long chunk, head of 80": wide(head_dim=80, tokens_per_page=12),
}


@pytest.mark.parametrize("name", CASES)
def test_the_twin_is_that_of_the_matrices(name: str) -> None:
    case = CASES[name]
    if case.num_rows:
        twins, exact = case.by_twin(torch.float64), case.by_matrices(torch.float64)
        assert bool(torch.isclose(twins, exact, rtol=1e-12, atol=1e-12).all())


def split(monkeypatch: pytest.MonkeyPatch, num_programs: int = 9) -> None:
    """Few keys are split, too: one block to a program."""
    monkeypatch.setattr(attention_tiles, "_PROGRAMS", num_programs)
    monkeypatch.setattr(attention_tiles, "_SPLIT_KEYS", 1)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer splits of the keys than on a device: the interpreter takes milliseconds a program."""
    if INTERPRETED:
        split(monkeypatch)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in CASES
        for dtype in DOT_DTYPES
        # The interpreter is slow: it tries the other dtypes on one case for each kind of tile.
        if not INTERPRETED or dtype == torch.float32 or name in ("decode", "long chunk")
    ],
    ids=str,
)
def test_error_is_at_most_twice_that_of_pytorch(name: str, dtype: torch.dtype) -> None:
    check(replace(CASES[name], dtype=dtype))


def test_as_many_splits_as_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are combined at once."""
    tiles = attention_tiles.attention_tiles(1, 8, 1, 64, torch.float32)
    assert tiles.num_splits == 32 and tiles.min_blocks * tiles.block_n == 64
    monkeypatch.setattr(attention_tiles, "_SPLIT_KEYS", 1)
    case = Case([(1, 500)], tokens_per_page=37, num_q_heads=8, num_kv_heads=1)
    scratch = case.scratch()
    check(case, scratch)
    assert bool(scratch.part_max.isfinite().all()), "a split found nothing"


@pytest.mark.parametrize(("num_keys", "num_used"), [(64, 1), (65, 2), (128, 2), (129, 3)])
def test_a_split_has_at_least_so_many_keys(num_keys: int, num_used: int) -> None:
    """One alone leaves nothing to combine: it writes what it finds where it belongs."""
    case = Case([(1, num_keys)], tokens_per_page=16, num_q_heads=2, num_kv_heads=1, head_dim=16)
    scratch = case.scratch()
    case.by_kernel(scratch)
    found = scratch.part_max.view(2, -1).isfinite().sum(1)
    assert found.tolist() == [num_used if num_used > 1 else 0] * 2
    assert int(scratch.part.isfinite().sum()) == 16 * int(found.sum())


@pytest.mark.skipif(not INTERPRETED, reason="sums in the order of the interpreter")
def test_it_is_what_a_second_launch_would_make_of_the_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit: weights by the largest score of all, then sums in the order of the splits."""
    split(monkeypatch)
    case = Case([(1, 110), (1, 7), (2, 90)], num_q_heads=6, num_kv_heads=2, head_dim=24)
    scratch = case.scratch()
    out = case.by_kernel(scratch).numpy()
    part_max, part_sum = (
        found[: 4 * 6 * 4].view(4, 6, 4).numpy() for found in (scratch.part_max, scratch.part_sum)
    )
    part = scratch.part[: 4 * 6 * 4 * 24].view(4, 6, 4, 24).numpy()
    num_used = np.isfinite(part_max).sum(2)
    assert num_used.tolist() == [[4] * 6, [0] * 6, [3] * 6, [3] * 6]  # the second alone
    for row in (0, 2, 3):
        used = num_used[row, 0]
        maxes = part_max[row, :, :used]
        weight = np.exp2(maxes - maxes.max(1, keepdims=True))
        total, acc = np.zeros(6, np.float32), np.zeros((6, 24), np.float32)
        for s in range(used):
            total += weight[:, s] * part_sum[row, :, s]
            acc += weight[:, s, None] * part[row, :, s]
        np.testing.assert_array_equal(out[row], acc / total[:, None])


def test_passes_of_any_shape_share_a_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another, each leaves the counters as it found them."""
    split(monkeypatch)
    small: dict[str, Any] = {"num_q_heads": 1, "num_kv_heads": 1, "head_dim": 16}
    rows = [[(19, 40), (1, 60)], [(1, 40), (1, 90)], [(2, 33)], [(19, 40)]]
    cases = [Case(sequences, **small) for sequences in rows]
    shared = cases[0].scratch()
    for case in cases:
        assert torch.equal(case.by_kernel(shared), case.by_kernel()), case.sequences
    assert shared.arrived.numel() == 20


def test_one_split_needs_no_scratch() -> None:
    meta = torch.device("meta")
    q, pages = torch.empty(1024, 4, 64, device=meta), torch.empty(9, 5, 2, 64, device=meta)
    batch, table = RowBatch.allocate(1024, 4, meta), torch.empty(4, 9, device=meta)
    key_map = AttentionMap(batch, table, 5, None, ())
    launch = kernel.attention_launch(q, pages, pages, key_map, scale=1.0, out=q)
    assert launch.grid[2] == 1
    assert {launch.args[name] for name in vars(CASES["one row"].scratch())} == {None}


def test_without_a_scratch_there_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    split(monkeypatch)
    case = CASES["one row"]
    key_map = AttentionMap(
        RowBatch(**{name: t.to(DEVICE) for name, t in vars(case.batch).items()}),
        case.table.to(DEVICE), case.tokens_per_page, None, (),
    )  # fmt: skip
    q, k, v = (t.to(DEVICE) for t in (case.q, case.k, case.v))
    out = torch.empty(q.shape, device=DEVICE)
    kernel.paged_attention(q, k, v, key_map, scale=case.scale, out=out)
    assert torch.equal(out.cpu(), case.by_kernel())


def test_pages_may_lie_far_apart(tmp_path: Path) -> None:
    case = Case([(1, 8)], head_dim=16, dtype=torch.float16)
    wanted = case.by_kernel()
    near_k, near_v, table = case.k, case.v, case.table.clone()
    pages = far_pages(tmp_path, 3, (2, case.tokens_per_page, case.num_kv_heads, 16))
    case.k, case.v = pages[:, 0], pages[:, 1]
    slot = int(case.batch.seq_slot[0])
    for i in range(2):
        far = 2 - i
        case.k[far], case.v[far] = near_k[table[slot, i]], near_v[table[slot, i]]
        case.table[slot, i] = far
    assert torch.equal(case.by_kernel(), wanted)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.skipif(not INTERPRETED, reason="reads out of bounds on purpose")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("p_table + o_next // TOKENS_PER_PAGE", "p_table + o_next // TOKENS_PER_PAGE + 1"),
        ("(o_key + BLOCK_N) // TOKENS_PER_PAGE", "o_key // TOKENS_PER_PAGE"),
        ("(o_key >= first_key) & (o_key < end_key)", "o_key >= first_key"),
        ("o_key[None, :] <= b_position[:, None]", "b_position[:, None] >= 0"),
        ("position + 1 - WINDOW, 0", "position + 2 - WINDOW, 0"),
        ("(o_split < num_used)", "(o_split < num_splits)"),
        ("== num_used - 1", "== num_used - 2"),
        ("p_arrived = arrived + i_row", "p_arrived = arrived + 0 * i_row"),
        ("tl.store(arrived + i_row", "# tl.store(arrived + i_row"),
        ('sem="acq_rel"', 'sem="relaxed"'),
        ("tl.debug_barrier()", "# tl.debug_barrier()"),
    ],
    ids=[
        *("first page", "next page", "stale keys", "later keys", "window", "stale splits"),
        *("too early", "one counter for all", "counter left", "no release", "no barrier"),
    ],
)
def test_a_bug_is_caught(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case([(1, 90), (3, 37)], window=70, head_dim=16)
    check(case)
    plant(monkeypatch, tmp_path, right, wrong)
    with pytest.raises(AssertionError):
        check(case)


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path, right: str, wrong: str) -> None:
    """Puts a bug into the kernel that is launched."""
    module = broken(attend, folder, right, wrong)
    monkeypatch.setattr(kernel, "attend_kernel", module.attend_kernel)


def test_nan_in_k_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a split of the keys has nothing else, whose largest score is then -inf."""
    split(monkeypatch, 64)
    case = Case([(1, 110)], num_q_heads=2, num_kv_heads=1, head_dim=16)
    for token in range(16):  # the keys of the first split
        page = int(case.table[case.batch.seq_slot[0], token // case.tokens_per_page])
        case.k[page, token % case.tokens_per_page] = torch.nan
    assert bool(case.by_kernel().isnan().all())


def test_scratch_that_is_too_small_is_refused() -> None:
    case = Case([(1, 9)])
    part_max = torch.empty(3)
    scratch = replace(case.scratch(), part_max=part_max)
    key_map = AttentionMap(case.batch, case.table, 5, None, (), scratch)
    message = r"key_map.scratch.part_max has 3 elements; this pass needs 128"
    with pytest.raises(ValueError, match=message):
        kernel.attention_launch(case.q, case.k, case.v, key_map, scale=1.0, out=case.q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_per_page": 6}, "k_pages has 5 tokens a page; it must have 6"),
        ({"page_table": torch.zeros(3, 3)}, "page_table has dtype torch.float32; allowed: torch.i"),
        ({"page_table": torch.zeros(9)}, r"page_table has shape \[9\]; it must have 2 dim"),
        (
            {"scratch": AttentionScratch(*[torch.zeros(9)] * 4)},
            "key_map.scratch.arrived has dtype torch.float32; allowed: torch.int32",
        ),
    ],
)
def test_a_bad_map_is_refused(change: dict[str, Any], message: str) -> None:
    case = Case([(1, 9)])
    key_map = replace(AttentionMap(case.batch, case.table, 5, None, ()), **change)
    with pytest.raises(ValueError, match=message):
        kernel.paged_attention(case.q, case.k, case.v, key_map, scale=1.0, out=case.q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict.fromkeys(("q", "out"), torch.zeros(1, 3, 64)),
            "q has 3 heads; it must be a multiple of 2",
        ),
        ({"q": torch.zeros(1, 4, 63)}, r"q has shape \[1, 4, 63\]; it must be \[1, 4, 64\]"),
        ({"q": torch.zeros(1, 4, 64).double()}, "q has dtype torch.float64; allowed: "),
        ({"out": torch.zeros(1, 4, 64).half()}, "out has dtype torch.float16; allowed: torch.f"),
        ({"out": torch.zeros(1, 64, 4).mT}, r"out has strides \(256, 1, 4\); its last dim"),
    ],
)
def test_bad_tensors_are_refused(change: dict[str, Tensor], message: str) -> None:
    case = Case([(1, 9)])
    key_map = AttentionMap(case.batch, case.table, 5, None, ())
    good: dict[str, Any] = {"q": case.q, "k_pages": case.k, "v_pages": case.v, "out": case.q}
    with pytest.raises(ValueError, match=message):
        kernel.paged_attention(**(good | change), key_map=key_map, scale=1.0)


@pytest.mark.parametrize("broken_value", ["page", "length", "slot"])
def test_debug_mode_names_what_is_out_of_range(
    broken_value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")
    case = Case([(1, 9)])
    slot = int(case.batch.seq_slot[0])
    if broken_value == "page":
        case.table[slot, 1] = -1
        message = rf"page_table\[{slot}\] is \[\d+, -1\]; allowed: 0 to \d+"
    elif broken_value == "length":
        case.batch.seq_kv_len[0] = 136
        message = r"batch.seq_kv_len\[0\] is 136; allowed: 1 to 135"
    else:
        case.batch.seq_slot[0] = 3
        message = r"batch.seq_slot\[0\] is 3; allowed: 0 to 2"
    with pytest.raises(ValueError, match=message):
        case.by_kernel()
