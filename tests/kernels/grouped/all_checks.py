"""Every kind of weight in few bits, fused with everything. Run by `test_kernel.py`."""

from __future__ import annotations

import itertools

import pytest
import torch

from rsd_kernels.grouped.matrix import ValueKind
from tests.kernels.grouped.cases import Case, check

FUSED = ("", "bias residual", "norm bias", "gated", "norm bias gated gelu")
ROWS = (1, 2, 4, 5, 16, 17, 70)


@pytest.mark.parametrize("group_size", [32, 64, 128, 384])
@pytest.mark.parametrize("kind", ValueKind)
def test_products(kind: ValueKind, group_size: int) -> None:
    """Rows, zeros and an order in every combination; the rest in turn."""
    has_zeros = (False,) if kind is ValueKind.FP8 else (False, True)
    fused = itertools.cycle(FUSED)
    combinations = itertools.product(has_zeros, (False, True), ROWS)
    for index, (zeros, order, num_rows) in enumerate(combinations):
        dtype, scale_rows = (torch.float16, torch.float32)[index % 2], (1, 8)[index // 2 % 2]
        check(
            Case(kind, num_rows, 18, 384, group_size, scale_rows, zeros, order, next(fused)), dtype
        )
