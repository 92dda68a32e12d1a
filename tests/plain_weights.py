"""The tensors of weights that hold plain ones, and not the bytes of a file."""

from __future__ import annotations

from torch import Tensor

from rsd_kernels.formats.weight import StoredMatrix, Weight
from rsd_kernels.linear.weight import LinearWeight


def matrix_of(weight: Weight) -> Tensor:
    assert isinstance(weight, LinearWeight)
    return weight.matrix


def plain(table: Tensor | StoredMatrix) -> Tensor:
    assert isinstance(table, Tensor)
    return table
