"""Matrices in the bytes of GGUF: expanded as llama.cpp's package does, and in products."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.formats.expand import expand
from rsd_kernels.formats.formats import BF16, FORMATS, PLAIN, Q4_1, Q4_K, Q6_K, Q8_0, MatrixFormat
from rsd_kernels.formats.weight import StoredMatrix, StoredWeight
from rsd_kernels.linear.weight import LinearWeight
from tests.kernels.formats.random_rows import random_matrix
from tests.kernels.harness.isa import isa

__all__ = ["isa"]  # a fixture

BLOCKS = [form for form in FORMATS.values() if form.dtype is None]
ROWS = [1, 3, 8, 9, 40]  # a tile of the smallest and of other sizes, and groups of rows


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_sizes_are_those_of_gguf(form: MatrixFormat) -> None:
    kind = gguf.GGMLQuantizationType[form.name]
    assert gguf.GGML_QUANT_SIZES[kind] == (form.block_length, form.block_bytes)


@pytest.mark.parametrize("form", BLOCKS, ids=lambda form: form.name)
def test_the_twin_expands_as_gguf_does(form: MatrixFormat) -> None:
    matrix = random_matrix(form, 6, 512)
    kind = gguf.GGMLQuantizationType[form.name]
    wanted = gguf.quants.dequantize(matrix.rows.numpy(), kind)
    assert np.array_equal(matrix.expand().numpy(), wanted)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("num_rows", ROWS)
def test_a_product_has_the_bits_of_the_expanded_one(
    isa: str, form: MatrixFormat, num_rows: int
) -> None:
    weight = StoredWeight((random_matrix(form, 53, 512),), randn(53, seed=1))
    x, residual = randn(num_rows, 512), randn(num_rows, 53, seed=2)
    found = cpu_ops.linear(x, weight, residual=residual)
    assert torch.equal(found, cpu_ops.linear(x, weight.to(torch.float32), residual=residual))
    wide = weight.to(torch.float32).matrix.double()
    exact = x.double() @ wide.t() + weight.bias.double() + residual.double()  # type: ignore[union-attr]
    size = (x.double().abs() @ wide.abs().t()).clamp(min=1)
    assert ((found.double() - exact).abs() / size).max() < 2**-22
    for row in range(0, num_rows, 4):
        alone = cpu_ops.linear(x[row : row + 1], weight, residual=residual[row : row + 1])
        assert torch.equal(found[row : row + 1], alone)


def test_parts_of_several_formats(isa: str) -> None:
    """As q, k and v of a file may be: no part begins where a share of the outputs does."""
    parts = (
        random_matrix(Q4_K, 131, 256),
        random_matrix(Q6_K, 7, 256),
        StoredMatrix.of(randn(61, 256)),
    )
    weight, x = StoredWeight(parts, randn(199, seed=1)), randn(3, 256)
    found = cpu_ops.linear(x, weight)
    assert torch.equal(found, cpu_ops.linear(x, weight.to(torch.float32)))
    for narrow, start in zip(weight.split(100, 50, 49), (0, 100, 150), strict=True):
        out = cpu_ops.linear(x, narrow)
        assert torch.equal(out, found[:, start : start + narrow.num_outputs])


def test_long_rows(isa: str) -> None:
    """Rows of which not even one tile is a panel that fits the inner cache."""
    weight, x = StoredWeight((random_matrix(Q4_K, 9, 40960),)), randn(10, 40960)
    assert torch.equal(cpu_ops.linear(x, weight), cpu_ops.linear(x, weight.to(torch.float32)))


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_embedding_rows_are_expanded_when_they_are_read(isa: str, form: MatrixFormat) -> None:
    table = random_matrix(form, 11, 256)
    token = torch.tensor([10, 0, 3], dtype=torch.int32)
    out = cpu_ops.embed(table, token, scale=3.0, out=torch.empty(3, 256))
    assert torch.equal(out, table.expand()[token.long()] * 3.0)


def test_a_token_past_the_table_is_refused() -> None:
    if cpu_library.load() is None:
        pytest.skip(f"the CPU library is {cpu_library.status()}")
    token = torch.tensor([11], dtype=torch.int32)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        cpu_ops.embed(random_matrix(Q8_0, 11, 256), token, out=torch.empty(1, 256))


def test_half_precision_numbers(isa: str) -> None:
    """All 65,536 of them, subnormal, infinite and NaN ones too."""
    table = StoredMatrix.of(torch.arange(65536).to(torch.uint16).view(torch.float16).view(-1, 16))
    token = torch.arange(4096, dtype=torch.int32)
    out = cpu_ops.embed(table, token, out=torch.empty(4096, 16))
    wanted = table.rows.view(torch.float16).float()
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out.nan_to_num(1.5), wanted.nan_to_num(1.5))


def test_plain_matrices() -> None:
    assert StoredMatrix.of(randn(3, 4).bfloat16()).form == BF16
    matrix = StoredMatrix.of(randn(3, 4).double())
    assert matrix.shape == (3, 4) and torch.equal(matrix.expand(), randn(3, 4))
    assert torch.equal(expand(matrix.rows, PLAIN[torch.float32]), randn(3, 4))
    assert matrix.nbytes == 48


def test_where_rows_are_no_whole_number_of_blocks() -> None:
    with pytest.raises(ValueError, match="Q4_1 stores rows in blocks of 32; 40 elements"):
        Q4_1.row_bytes(40)


def test_a_stored_weight_is_the_same_as_its_expansion() -> None:
    parts = (random_matrix(Q4_K, 5, 256), random_matrix(Q8_0, 3, 256))
    weight = StoredWeight(parts, randn(8))
    assert (weight.num_outputs, weight.num_inputs) == (8, 256)
    assert weight.nbytes == 5 * 144 + 3 * 8 * 34 + 8 * 4
    wide = weight.to(torch.float32)
    assert isinstance(wide, LinearWeight) and wide.matrix.shape == (8, 256)
    narrow = weight.narrow(4, 2)
    assert [part.shape[0] for part in narrow.parts] == [1, 1]
    assert torch.equal(narrow.to(torch.float32).matrix, wide.matrix[4:6])
    assert torch.equal(parts[0].select(torch.tensor([4, 1])).expand(), wide.matrix[[4, 1]])
