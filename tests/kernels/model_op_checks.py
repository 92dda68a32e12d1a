"""A whole forward by Triton against that by the twins. Run by `test_model_ops.py`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_engine.memory.page_pool import PagedKV
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.loader import load_language_model
from rsd_kernels.attention import tiles as attention_tiles
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.grouped.matrix import ValueKind
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.model_ops import model_ops, triton_ops
from rsd_kernels.state.rows import RowBatch
from tests.kernels.grouped.matrices import made
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE
from tests.models.checkpoints import make_model, save
from tests.models.driver import Driver, pack
from tests.plain_weights import matrix_of

Passes = list[dict[int, int]]  # slot -> new tokens
PASSES: Passes = [{0: 5, 2: 1}, {0: 1, 1: 3, 2: 1}, {0: 1, 1: 1, 2: 1}]
DECODE_PASSES: Passes = [{0: 2, 1: 1, 2: 1}, {0: 1}, {0: 1, 1: 1, 2: 2}]  # at most four rows
TOLERANCE = 1e-4  # fp32
INT4, FP8 = ValueKind.INT4, ValueKind.FP8


def tokens(slot: int, start: int, count: int) -> list[int]:
    return [(slot * 17 + position * 7) % 61 for position in range(start, start + count)]


def by_twins(folder: Path, passes: Passes = PASSES) -> list[Tensor]:
    return by_twins_of(load_language_model(folder, max_rows=64), passes)


def by_twins_of(model: LanguageModel, passes: Passes = PASSES) -> list[Tensor]:
    driver, found = Driver(model), []
    for new in passes:
        chunks = [(slot, tokens(slot, driver.kv_len[slot], n)) for slot, n in new.items()]
        found.append(driver.run(*chunks))
    return found


def padded(batch: RowBatch, num_rows: int, num_seqs: int) -> RowBatch:
    """The same pass in a bucket of fixed size: rows of no sequence, and empty sequences."""
    wide = RowBatch.allocate(num_rows, num_seqs, torch.device("cpu"))
    for field in fields(RowBatch):
        tensor = getattr(batch, field.name)
        getattr(wide, field.name)[: tensor.shape[0]] = tensor
    wide.page[batch.num_rows :] = -1
    wide.token[batch.num_rows :] = 1 << 20  # never read
    wide.seq_start[batch.num_seqs :] = batch.num_rows
    return RowBatch(**{f.name: getattr(wide, f.name).to(DEVICE) for f in fields(RowBatch)})


def on_device(model: LanguageModel) -> tuple[Driver, PagedKV, Tensor]:
    """Pages of NaN and the page table, where the model is."""
    driver = Driver(model)
    driver.pool.buffer = driver.pool.buffer.to(DEVICE)
    return driver, driver.pool.view(model.config.kv_shape(model.dtype)), driver.table.to(DEVICE)


def by_triton(
    model: LanguageModel, num_rows: int, num_seqs: int, passes: Passes = PASSES
) -> list[Tensor]:
    (driver, kv, table), found = on_device(model), []
    for new in passes:
        chunks = [(slot, tokens(slot, driver.kv_len[slot], n)) for slot, n in new.items()]
        batch = pack(chunks, driver.kv_len, driver.table, kv.tokens_per_page)
        for slot, n in new.items():
            driver.kv_len[slot] += n
        out = torch.full((num_seqs, model.config.vocab_size), float("nan"), device=DEVICE)
        model.logits(padded(batch, num_rows, num_seqs), kv, table, out)
        found.append(out[: len(new)].cpu())
    return found


@pytest.mark.parametrize(
    ("architecture", "num_rows"),
    [("qwen3", 16), ("mistral", 16), ("llama-bias", 20), ("gemma3", 16), ("olmo2", 16)],
)
def test_forward(
    architecture: str, num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every op of a forward: all norms, GELU, windows, biases; rows for one tile and more."""
    folder = save(make_model(architecture), tmp_path)
    if INTERPRETED:
        monkeypatch.setattr(attention_tiles, "_PROGRAMS", 9)
        monkeypatch.setattr(attention_tiles, "_SPLIT_KEYS", 1)
    model = load_language_model(folder, max_rows=64, device=DEVICE, dtype="float32")
    if INTERPRETED:
        monkeypatch.setattr(model.decoder, "ops", triton_ops(scheduled=True))
        scratch = attention_tiles.attention_scratch(64, 4, 4, 32, torch.float32, DEVICE)
        monkeypatch.setattr(model.decoder, "scratch", scratch)
    else:
        assert model_ops(matrix_of(model.lm_head)).backend == "triton"
    for found, wanted in zip(by_triton(model, num_rows, 4), by_twins(folder), strict=True):
        assert bool(found.isfinite().all())
        assert float((found - wanted).abs().max()) <= TOLERANCE


def few_bits(folder: Path, device: torch.device) -> LanguageModel:
    """The model with a layer in few bits, each weight of which knows what is read after it."""
    model = load_language_model(folder, max_rows=64, device=device, dtype="float32")
    first, *others = model.decoder.weights.layers
    few: dict[str, Any] = {}
    for name, kind in {"qkv": INT4, "o": FP8, "gate_up": FP8, "down": INT4}.items():
        given = getattr(first, name)
        group = 32 if given.num_inputs % 32 == 0 else given.num_inputs
        matrix, _ = made(kind, given.num_outputs, given.num_inputs, group, zeros=kind is INT4)
        few[name] = GroupedWeight(matrix.to(device), given.bias)
    for name, following in (("qkv", "o"), ("o", "gate_up"), ("gate_up", "down")):
        few[name] = few[name].before(few[following].stored)
    layer = replace(first, **few)
    model.decoder.weights = replace(model.decoder.weights, layers=(layer, *others))
    return model


def test_forward_of_few_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one layer of two."""
    folder = save(make_model("llama-bias"), tmp_path)
    model = few_bits(folder, DEVICE)
    if INTERPRETED:
        monkeypatch.setattr(model.decoder, "ops", triton_ops(scheduled=True))
        scratch = attention_tiles.attention_scratch(64, 4, 4, 32, torch.float32, DEVICE)
        monkeypatch.setattr(model.decoder, "scratch", scratch)
    passes: Passes = [{0: 2, 2: 1}]
    wanted = by_twins_of(few_bits(folder, torch.device("cpu")), passes)
    for found, twin in zip(by_triton(model, 4, 2, passes), wanted, strict=True):
        assert float((found - twin).abs().max()) <= TOLERANCE


@pytest.mark.skipif(INTERPRETED, reason="needs the CUDA library on a device")
@pytest.mark.parametrize("architecture", ["qwen3", "llama-bias"])
def test_decode_products_by_the_cuda_library(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one to four sequences, every product but that to q, k and v."""
    if cuda_library.load() is None:
        pytest.skip(f"the CUDA library is {cuda_library.status()}")
    monkeypatch.setenv("RSD_DECODE_PROJECTION", "cuda")
    folder = save(make_model(architecture), tmp_path)
    model = load_language_model(folder, max_rows=64, device=DEVICE, dtype="float32")
    found = by_triton(model, 4, 3, DECODE_PASSES)
    for logits, wanted in zip(found, by_twins(folder, DECODE_PASSES), strict=True):
        assert float((logits - wanted).abs().max()) <= TOLERANCE


@pytest.mark.skipif(INTERPRETED, reason="watches a device at work")
@pytest.mark.parametrize(
    ("num_rows", "decode_projection"), [(16, "triton"), (64, "triton"), (4, "cuda")]
)
def test_a_forward_can_be_captured(
    num_rows: int, decode_projection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It allocates nothing, waits for nothing, and its CUDA graph gives the same bits."""
    if decode_projection == "cuda" and cuda_library.load() is None:
        pytest.skip(f"the CUDA library is {cuda_library.status()}")
    monkeypatch.setenv("RSD_DECODE_PROJECTION", decode_projection)
    folder = save(make_model("qwen3"), tmp_path)
    model = load_language_model(folder, max_rows=64, device=DEVICE, dtype="bfloat16")
    driver, kv, table = on_device(model)
    chunks = [(0, tokens(0, 0, 3)), (2, tokens(2, 0, 1))]
    batch = padded(pack(chunks, driver.kv_len, driver.table, kv.tokens_per_page), num_rows, 4)
    out = torch.full((4, model.config.vocab_size), float("nan"), device=DEVICE)
    model.logits(batch, kv, table, out)  # compiles, and cuBLAS takes its workspace
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.logits(batch, kv, table, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    wanted = out[: len(chunks)].clone()
    assert bool(wanted.isfinite().all())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.logits(batch, kv, table, out)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out[: len(chunks)], wanted)
