"""The adapter to flash-attn against the twin, with a stand-in for the library."""

from __future__ import annotations

import importlib.machinery
import sys
from dataclasses import fields, replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from rsd_engine.memory.page_pool import KVShape, PagePool
from rsd_kernels import launch as triton_support
from rsd_kernels.attention import flash as flash_attention
from rsd_kernels.attention.twin import attention_map, paged_attention
from rsd_kernels.model_ops import TWINS, model_ops
from rsd_kernels.state.rows import RowBatch
from tests.kernels.attention.fake_flash_attn import fake_library
from tests.page_checks import poison

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SHAPE = KVShape(num_layers=2, num_kv_heads=2, head_dim=16, dtype=torch.bfloat16)
COLUMNS = 3  # pages a slot may hold


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = fake_library()
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


def scene(sequences: list[tuple[int, int]], padding: int = 0) -> tuple[RowBatch, Tensor, PagePool]:
    """(new rows, keys) of each slot, in pages of 256 tokens; memory past the keys is NaN."""
    num_slots = len(sequences)
    pool = PagePool(num_slots * COLUMNS, 256 * SHAPE.bytes_per_token, CPU, 256)
    poison(pool, torch.arange(pool.num_pages))
    order = torch.randperm(pool.num_pages, generator=torch.Generator().manual_seed(1))
    table = order.view(num_slots, COLUMNS).int()
    rows = sum(n for n, _ in sequences)
    batch = RowBatch.allocate(rows + padding, num_slots, CPU)
    # Sequence s is in another slot than s.
    batch.seq_slot.copy_(torch.arange(num_slots).flip(0))
    batch.seq_start[1:] = torch.tensor([n for n, _ in sequences]).cumsum(0)
    batch.seq_kv_len.copy_(torch.tensor([keys for _, keys in sequences]))
    kv = pool.view(SHAPE)
    for slot, (_, keys) in zip(batch.seq_slot.tolist(), sequences, strict=True):
        key = torch.arange(keys)
        for plane in (kv.k[1], kv.v[1]):
            new = torch.randn(keys, 2, 16, generator=torch.Generator().manual_seed(keys))
            plane[table[slot, key // 256].long(), key % 256] = new.bfloat16()
    return batch, table, pool


@pytest.mark.parametrize(
    ("sequences", "padding", "called"),
    [
        ([(1, 1)], 0, "with_kvcache"),
        ([(1, 300)], 0, "with_kvcache"),
        ([(1, 20), (1, 700), (1, 256)], 0, "varlen"),
        ([(1, 40), (5, 260), (0, 0), (30, 30)], 0, "varlen"),
        ([(1, 40), (0, 77), (0, 0)], 3, "varlen"),
        ([(70, 513)], 0, "varlen"),
    ],
)
@pytest.mark.parametrize("window", [None, 9])
def test_is_that_of_the_twin(
    sequences: list[tuple[int, int]],
    padding: int,
    called: str,
    window: int | None,
    library: ModuleType,
) -> None:
    batch, table, pool = scene(sequences, padding)
    kv = pool.view(SHAPE)
    assert kv.tokens_per_page == 256
    rows = int(batch.seq_start[-1])
    q = torch.randn(batch.num_rows, 4, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    ops = flash_attention.over(TWINS)
    key_map = ops.attention_map(batch, table, 256, window, q.dtype, None)
    assert isinstance(key_map, flash_attention.FlashMap)
    out = torch.full_like(q, 7.0)
    found = ops.paged_attention(q, kv.k[1], kv.v[1], key_map, scale=0.3, out=out)
    assert found is out
    assert library.calls == [called]
    real = replace(batch, **{f.name: getattr(batch, f.name) for f in fields(RowBatch)})
    real = real.narrow(rows, batch.num_seqs, batch.num_places)
    used = [s for s, (n, _) in enumerate(sequences) if n]
    assert used == list(range(len(used))) or padding == 0
    wide = torch.empty(rows, 4, 16, dtype=torch.float64)
    exact = paged_attention(
        q[:rows].double(), kv.k[1].double(), kv.v[1].double(),
        attention_map(real, table, 256, window, torch.float64), scale=0.3, out=wide,
    )  # fmt: skip
    assert float((out[:rows].double() - exact).abs().max()) <= 2 * torch.finfo(q.dtype).eps
    assert bool((out[rows:] == 7).all()), "a row of no sequence was written"


def test_other_pages_go_to_the_kernel(library: ModuleType) -> None:
    batch, table, pool = scene([(1, 20)])
    small = PagePool(pool.num_pages, 16 * SHAPE.bytes_per_token, CPU)
    small.buffer.view(torch.bfloat16).zero_()
    kv = small.view(SHAPE)
    ops = flash_attention.over(TWINS)
    key_map = ops.attention_map(batch, table, kv.tokens_per_page, None, torch.bfloat16, None)
    q = torch.randn(1, 4, 16).bfloat16()
    out = ops.paged_attention(q, kv.k[0], kv.v[0], key_map, scale=1.0, out=torch.ones_like(q))
    assert library.calls == []
    assert bool((out == 0).all())


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CUDA, torch.bfloat16, None),
        (CUDA, torch.float16, None),
        (CUDA, torch.float32, "takes bfloat16 and float16, not torch.float32"),
        (CPU, torch.bfloat16, "runs on CUDA devices, not on cpu"),
    ],
)
def test_when_it_is_used(
    device: torch.device, dtype: torch.dtype, reason: str | None, library: ModuleType
) -> None:
    found = flash_attention.refusal(device, dtype)
    assert found is None if reason is None else reason in str(found)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "installed", lambda: None)
    assert flash_attention.refusal(CUDA, torch.bfloat16) == "flash-attn is not installed"


def test_the_choice(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert model_ops(torch.empty(0)).page_multiple == 1
    monkeypatch.setattr("rsd_kernels.model_ops.runs_on", lambda tensor: True)
    monkeypatch.setattr(flash_attention, "refusal", lambda device, dtype: None)
    ops = model_ops(torch.empty(0))
    assert ops.backend == "flash-attn of unknown version, else triton"
    assert ops.page_multiple == 256
    monkeypatch.setattr(flash_attention, "refusal", lambda device, dtype: "no")
    assert model_ops(torch.empty(0)).backend == "triton"
    assert triton_support.runs_on(torch.empty(0)) is False
