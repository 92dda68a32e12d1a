"""All layers in one call of the CPU library, against the same ops one by one and the twins."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rsd_engine.models import decoder as decoder_module
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.loader import load_language_model
from rsd_engine.models.weight_form import name_of
from rsd_kernels import model_ops
from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.state.rows import RowBatch
from tests.models.checkpoints import ARCHITECTURES, WHOLE, make_model, save
from tests.models.driver import Driver, pack

TOLERANCE = 1e-5
PASSES = [{0: 9, 2: 1, 3: 30}, {0: 1, 1: 3, 2: 1}, {3: 2, 0: 1, 1: 1, 2: 1}, {2: 1}]

pytestmark = pytest.mark.skipif(
    cpu_library.load() is None, reason=f"the CPU library is {cpu_library.status()}"
)


def tokens(slot: int, start: int, count: int) -> list[int]:
    return [(slot * 17 + position * 7) % 61 for position in range(start, start + count)]


def logits(model: LanguageModel) -> list[Tensor]:
    driver, found = Driver(model), []
    for new in PASSES:
        chunks = [(slot, tokens(slot, driver.kv_len[slot], n)) for slot, n in new.items()]
        found.append(driver.run(*chunks))
    return found


@pytest.fixture(scope="module", params=WHOLE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model(request.param), tmp_path_factory.mktemp(request.param))


def test_equals_the_twins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_language_model(folder, max_rows=64)
    assert model.decoder.ops.backend.startswith("CPU library")
    assert model.decoder.is_whole
    monkeypatch.setattr(decoder_module, "model_ops", lambda _, scheduled: model_ops.TWINS)
    twin = load_language_model(folder, max_rows=64)
    assert not twin.decoder.is_whole
    for found, wanted in zip(logits(model), logits(twin), strict=True):
        assert bool(found.isfinite().all())
        assert float((found - wanted).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(WHOLE)))
def test_ops_one_by_one_equal_the_twins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms of what a block adds, of all heads together and GELU are not in the library."""
    folder = save(make_model(name), tmp_path)
    model = load_language_model(folder, max_rows=64)
    assert model.decoder.ops.backend.startswith("CPU library")
    assert not model.decoder.is_whole
    monkeypatch.setattr(decoder_module, "model_ops", lambda _, scheduled: model_ops.TWINS)
    twin = load_language_model(folder, max_rows=64)
    for found, wanted in zip(logits(model), logits(twin), strict=True):
        assert float((found - wanted).abs().max()) <= TOLERANCE


def test_equals_its_ops_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logits(load_language_model(folder, max_rows=64))
    monkeypatch.setattr("rsd_kernels.model_ops.cpu_decoder", lambda _: None)
    model_ops.cpu_library_ops.cache_clear()
    try:
        model = load_language_model(folder, max_rows=64)
        assert model.decoder.ops.backend.startswith("CPU library")
        assert not model.decoder.is_whole
        for found, wanted in zip(logits(model), whole, strict=True):
            assert torch.equal(found, wanted)
    finally:
        model_ops.cpu_library_ops.cache_clear()


def test_bfloat16_matrices_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    """Half the bytes, and the bits of the same values held in fp32."""
    transformed = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    narrow = load_language_model(save(transformed, tmp_path / "bf16"), max_rows=64)
    wide = load_language_model(save(transformed.float(), tmp_path / "fp32"), max_rows=64)
    weights = narrow.decoder.weights
    assert (weights.held_in, weights.dtype, narrow.dtype) == (
        "bfloat16", torch.float32, torch.float32,
    )  # fmt: skip
    assert {name_of(table) for table in narrow.lm_head.tables} == {"bfloat16"}
    assert narrow.decoder.is_whole
    assert 0.5 < narrow.weight_bytes / wide.weight_bytes < 0.55
    for found, wanted in zip(logits(narrow), logits(wide), strict=True):
        assert torch.equal(found, wanted)


def test_bfloat16_matrices_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(make_model("qwen3").bfloat16(), tmp_path)
    whole = logits(load_language_model(folder, max_rows=64))
    monkeypatch.setattr("rsd_kernels.model_ops.cpu_decoder", lambda _: None)
    model_ops.cpu_library_ops.cache_clear()
    try:
        model = load_language_model(folder, max_rows=64)
        assert not model.decoder.is_whole
        assert model.decoder.weights.held_in == "bfloat16"
        for found, wanted in zip(logits(model), whole, strict=True):
            assert torch.equal(found, wanted)
    finally:
        model_ops.cpu_library_ops.cache_clear()


def test_same_bits_alone_and_in_a_batch(folder: Path) -> None:
    """Chunked in any way, beside any others: a row's logits are the same."""
    model = load_language_model(folder, max_rows=64)
    row = tokens(0, 0, 40)
    alone = Driver(model)
    wanted = [alone.run((0, [token])) for token in row]
    together = Driver(model)
    together.run((1, tokens(1, 0, 12)), (0, row[:22]))
    found = together.run((2, tokens(2, 0, 3)), (0, row[22:39]), (1, tokens(1, 12, 1)))
    assert torch.equal(found[1:2], wanted[38])
    assert torch.equal(together.run((0, row[39:])), wanted[39])


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    """With enough work for several; more of them than cores is slow and not wrong."""
    sizes = {"hidden_size": 160, "intermediate_size": 720, "num_hidden_layers": 3}
    model = load_language_model(save(make_model("qwen3", **sizes), tmp_path), max_rows=64)
    wanted = logits(model)
    for threads in (2, 3, 5) * 4:
        torch.set_num_threads(threads)
        for found, alone in zip(logits(model), wanted, strict=True):
            assert torch.equal(found, alone)


def load_qwen3(tmp_path: Path) -> LanguageModel:
    return load_language_model(save(make_model("qwen3"), tmp_path), max_rows=16)


def test_padding_is_not_looked_at(tmp_path: Path) -> None:
    model = load_qwen3(tmp_path)
    driver, plain = Driver(model), Driver(model)
    batch = pack([(1, tokens(1, 0, 5))], [0] * 4, driver.table, driver.kv.tokens_per_page)
    wide = RowBatch.allocate(9, 3, torch.device("cpu"))
    for field in fields(RowBatch):
        tensor = getattr(batch, field.name)
        getattr(wide, field.name)[: tensor.shape[0]] = tensor
    for tensor in (wide.token, wide.page, wide.offset, wide.position):
        tensor[5:] = 1 << 30
    wide.seq_start[1:] = 5
    wide.place_row_end[1:] = 5
    wide.seq_slot[1:] = 99
    out = torch.full((3, 61), float("nan"))
    model.logits(wide, driver.kv, driver.table, out)
    assert torch.equal(out[:1], plain.run((1, tokens(1, 0, 5))))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("token", 61, "a token id is not in the vocabulary"),
        ("token", -1, "a token id is not in the vocabulary"),
        ("position", 96, "a position is past the rope tables"),
        ("page", 1 << 20, "a page or an offset is not in the pool"),
        ("offset", 40, "a page or an offset is not in the pool"),
        ("seq_kv_len", 1, "a sequence has rows that its length does not cover"),
    ],
)
def test_a_bad_pass_writes_nothing(tmp_path: Path, name: str, value: int, message: str) -> None:
    model = load_qwen3(tmp_path)
    driver = Driver(model)
    batch = pack([(1, tokens(1, 0, 5))], [0] * 4, driver.table, driver.kv.tokens_per_page)
    getattr(batch, name)[-1] = value
    with pytest.raises(ValueError, match=message):
        model.logits(batch, driver.kv, driver.table, torch.empty(1, 61))
    assert bool((driver.pool.buffer == 0xFF).all())


def test_other_dtypes_go_to_the_twins(tmp_path: Path) -> None:
    folder = save(make_model("llama2"), tmp_path)
    model = load_language_model(folder, max_rows=64, dtype="bfloat16")
    assert model.decoder.ops is model_ops.TWINS
    assert not model.decoder.is_whole
