"""What the weights of a model are held in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_kernels.formats.formats import PLAIN
from rsd_kernels.formats.weight import StoredMatrix
from rsd_kernels.grouped.matrix import GroupedMatrix


@dataclass(frozen=True)
class WeightForm:
    """What a model computes in, and what its matrices are held in.

    Attributes:
        dtype: of every computation, of vectors, and of K and V.
        matrix_dtype: of the matrices; None: they stay in the bytes of the file.
        bytes_per_parameter: of the matrices, on average.
        name: of what they are held in, for people: "bfloat16", "Q4_K and Q6_K".
    """

    dtype: torch.dtype
    matrix_dtype: torch.dtype | None
    bytes_per_parameter: float
    name: str

    @classmethod
    def plain(cls, dtype: torch.dtype, matrix_dtype: torch.dtype | None = None) -> WeightForm:
        """Matrices are of `dtype` too, unless `matrix_dtype` is given."""
        held = matrix_dtype or dtype
        return cls(dtype, held, held.itemsize, _short(held))

    @classmethod
    def as_stored(cls, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> WeightForm:
        """Matrices stay as the file has them."""
        matrices = [tensor for tensor in stored.values() if tensor.is_matrix]
        sizes = [stays_as(tensor) for tensor in matrices]
        num_bytes = sum(size for _, size in sizes)
        num_elements = sum(tensor.num_elements for tensor in matrices)
        return cls(dtype, None, num_bytes / num_elements, listed_by_size(sizes))

    def held(self, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[str, int]]:
        """Format and bytes in memory of every matrix of a checkpoint."""
        matrices = {name: tensor for name, tensor in stored.items() if tensor.is_matrix}
        if self.matrix_dtype is None:
            return {name: stays_as(matrix) for name, matrix in matrices.items()}
        return {name: _plain(matrix, self.matrix_dtype) for name, matrix in matrices.items()}


def stays_as(matrix: StoredTensor) -> tuple[str, int]:
    """Format and bytes of a matrix that stays as it is stored, if products can be made of that.

    Blocks of other formats, such as Q3_K, are expanded to float32.
    """
    if matrix.stored:
        return str(matrix.packing), matrix.nbytes
    return _plain(matrix, matrix.dtype if matrix.dtype in PLAIN else torch.float32)


def name_of(table: Tensor | StoredMatrix | GroupedMatrix) -> str:
    """What a matrix is held in; of plain elements that is their dtype."""
    if isinstance(table, Tensor):
        return _short(table.dtype)
    if isinstance(table, GroupedMatrix):
        return table.kind.value
    return table.form.name if table.form.dtype is None else _short(table.form.dtype)


def listed_by_size(sizes: Iterable[tuple[str, int]]) -> str:
    """Every name once, that of most bytes first: "Q4_K and Q6_K"."""
    totals: dict[str, int] = {}
    for name, size in sizes:
        totals[name] = totals.get(name, 0) + size
    names = sorted(totals, key=lambda name: -totals[name])
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _plain(matrix: StoredTensor, dtype: torch.dtype) -> tuple[str, int]:
    return _short(dtype), matrix.num_elements * dtype.itemsize


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
