"""Matrices in few bits: their values, merging, and what cannot be packed."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind
from tests.kernels.grouped.matrices import made

KINDS = list(ValueKind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_inputs", "group_size", "scale_rows", "zeros"),
    [(320, 64, 1, True), (256, 256, 1, False), (96, 32, 2, True), (48, 48, 5, False)],
)
def test_values(
    kind: ValueKind, num_inputs: int, group_size: int, scale_rows: int, zeros: bool
) -> None:
    matrix, expected = made(kind, 5, num_inputs, group_size, scale_rows, zeros=zeros)
    torch.testing.assert_close(matrix.expand().double(), expected, rtol=1e-6, atol=1e-6)


def test_order() -> None:
    order = torch.randperm(128, generator=torch.Generator().manual_seed(3)).int()
    matrix, expected = made(ValueKind.INT4, 4, 128, 32, zeros=True, order=order)
    torch.testing.assert_close(matrix.expand().double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_parts_follow_one_another(kind: ValueKind) -> None:
    parts = [
        made(kind, outputs, 128, 64, rows, zeros=zeros, seed=outputs)
        for outputs, rows, zeros in ((4, 2, False), (3, 2, True), (6, 1, False))
    ]
    merged = GroupedMatrix.merge([matrix for matrix, _ in parts])
    expected = torch.cat([values for _, values in parts])
    torch.testing.assert_close(merged.expand().double(), expected, rtol=1e-6, atol=1e-6)


def test_parts_that_differ_are_not_merged() -> None:
    a, b = made(ValueKind.INT4, 4, 128, 64)[0], made(ValueKind.INT4, 4, 128, 32)[0]
    with pytest.raises(ValueError, match="quantised alike"):
        GroupedMatrix.merge([a, b])
    order = torch.arange(128, dtype=torch.int32)
    with pytest.raises(ValueError, match="quantised alike"):
        GroupedMatrix.merge([a, made(ValueKind.INT4, 4, 128, 64, order=order)[0]])


@pytest.mark.parametrize("group_size", [48, 16, 96])
def test_a_group_size_must_divide(group_size: int) -> None:
    values = torch.zeros(2, 256, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"group_size={group_size} must be a multiple of 32"):
        GroupedMatrix.pack(ValueKind.INT4, values, torch.ones(2, 4), group_size=group_size)


def test_scales_of_another_shape() -> None:
    values = torch.zeros(2, 256, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"scales have shape \[2, 3\]; they must have \[2, 4\]"):
        GroupedMatrix.pack(ValueKind.INT4, values, torch.ones(2, 3), group_size=64)


def test_four_bits_take_four_bits() -> None:
    matrix, _ = made(ValueKind.INT4, 4, 512, 128)
    assert matrix.values.nbytes == 4 * 512 // 2
