"""Plain matrices rounded to blocks: by the twin, by the CPU library, and as gguf's package does."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import pytest
import torch
from torch import Tensor

from rsd_kernels.cpu.quantise import quantise as by_library
from rsd_kernels.formats.formats import Q4_0, Q4_1, Q8_0, MatrixFormat
from rsd_kernels.formats.quantise import quantise as by_twin
from rsd_kernels.formats.weight import StoredMatrix
from tests.kernels.formats.test_formats import isa, randn

__all__ = ["isa"]

Quantise = Callable[[Tensor, MatrixFormat], StoredMatrix]
QUANTISERS = pytest.mark.parametrize("quantise", [by_twin, by_library], ids=["twin", "library"])


def odd_matrix() -> Tensor:
    """Values of all sizes, equal ones, zeros, and scales that are subnormal as halves or 0."""
    return torch.cat(
        (
            randn(7, 96),
            randn(5, 96, seed=1) * 1e-6,
            randn(3, 96, seed=2) * 1e-8,
            randn(4, 96, seed=3) * 1e-3 + 5,
            randn(4, 96, seed=4) * 1e4,
            torch.zeros(1, 96),
            torch.full((1, 96), -0.37),
        )
    )


def block_errors(found: StoredMatrix, matrix: Tensor) -> Tensor:
    off = found.expand().double() - matrix.double()
    return off.view(-1, 32).square().sum(1)


def by_gguf(matrix: Tensor, form: MatrixFormat) -> Tensor:
    kind = gguf.GGMLQuantizationType[form.name]
    packed = gguf.quants.quantize(matrix.numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(packed, kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_q8_0_of_the_library_has_the_bits_of_the_twin(isa: str, dtype: torch.dtype) -> None:
    matrix = odd_matrix().to(dtype)
    assert torch.equal(by_library(matrix, Q8_0).rows, by_twin(matrix, Q8_0).rows)


def test_q4_1_of_the_library_is_as_good_as_the_twins(isa: str) -> None:
    """Their sums differ in order, so a level that lies between two may differ."""
    matrix = odd_matrix()
    found, twin = by_library(matrix, Q4_1), by_twin(matrix, Q4_1)
    ours, theirs = block_errors(found, matrix), block_errors(twin, matrix)
    assert (found.rows == twin.rows).float().mean() > 0.9
    assert ours.sum() <= theirs.sum() * 1.001
    plain = randn(16, 96)
    assert torch.equal(by_library(plain, Q4_1).rows, by_twin(plain, Q4_1).rows)


def test_threads_share_the_blocks(isa: str) -> None:
    """Of a matrix that is worth several parts, and whose last vector of blocks is not full."""
    matrix = randn(67, 32 * 65)
    threads = torch.get_num_threads()
    for form in (Q8_0, Q4_1):
        torch.set_num_threads(1)
        alone = by_library(matrix, form).rows
        torch.set_num_threads(3)
        together = by_library(matrix, form).rows
        torch.set_num_threads(threads)
        assert torch.equal(alone, together)


@QUANTISERS
def test_q8_0_is_off_by_half_a_step_at_most(quantise: Quantise) -> None:
    matrix = randn(8, 256)
    blocks = matrix.view(-1, 32).double()
    off = (quantise(matrix, Q8_0).expand().view(-1, 32).double() - blocks).abs().amax(1)
    step = blocks.abs().amax(1) / 127
    # The scale is a half, off by 2^-11 of itself, and so is a level of up to 127 steps.
    assert (off <= step * (0.5 + 127 * 2**-11)).all()


@QUANTISERS
def test_q4_1_has_less_error_than_ggufs(quantise: Quantise) -> None:
    matrix = randn(64, 256)
    ours = (quantise(matrix, Q4_1).expand() - matrix).norm() / matrix.norm()
    theirs = (by_gguf(matrix, Q4_1) - matrix).norm() / matrix.norm()
    assert ours < 0.075 < theirs


@QUANTISERS
@pytest.mark.parametrize("form", [Q8_0, Q4_1], ids=lambda form: form.name)
def test_what_a_block_can_hold_stays_as_it_is(quantise: Quantise, form: MatrixFormat) -> None:
    levels = torch.arange(32).remainder(16).repeat(4, 3).float() - 8  # from -8 to 7
    levels[:, 5::32] = 7 if form is Q4_1 else 127
    matrix = levels * 0.25
    assert torch.equal(quantise(matrix, form).expand(), matrix)


@QUANTISERS
@pytest.mark.parametrize("form", [Q8_0, Q4_1], ids=lambda form: form.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 65536.0])
def test_values_that_no_half_is_near(quantise: Quantise, form: MatrixFormat, bad: float) -> None:
    matrix = randn(40, 64)
    matrix[39, 63] = bad
    with pytest.raises(ValueError, match="a value is not finite or beyond the range of a half"):
        quantise(matrix, form)


def test_what_is_not_allowed() -> None:
    with pytest.raises(ValueError, match="Q8_0 stores rows in blocks of 32; 48 elements"):
        by_library(randn(2, 48), Q8_0)
    with pytest.raises(ValueError, match="not quantised to Q4_0; only to Q4_1 and Q8_0"):
        by_library(randn(2, 64), Q4_0)
