"""The weight of a matrix product. How it is stored is known here, to its loader and to kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class ReadByProduct(Protocol):
    """What a product knows of its weight and of the next, of whatever format."""

    @property
    def stored(self) -> Tensor:
        """[num_outputs, elements of a row]: the matrix as it lies in memory."""
        ...

    @property
    def next_matrix(self) -> Tensor | None:
        """What a pass reads next."""
        ...


@dataclass(frozen=True)
class LinearWeight:
    """W and bias of y = x Wᵀ + bias."""

    matrix: Tensor  # [num_outputs, num_inputs]
    bias: Tensor | None = None  # [num_outputs]
    # The matrix that a pass reads next. On a GPU the product fetches its beginning into the cache.
    next_matrix: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        num_outputs: int,
        num_inputs: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LinearWeight:
        """An unfilled weight."""
        matrix = torch.empty(num_outputs, num_inputs, dtype=dtype, device=device)
        return cls(matrix, torch.empty(num_outputs, dtype=dtype, device=device) if bias else None)

    @property
    def num_outputs(self) -> int:
        return self.matrix.shape[0]

    @property
    def num_inputs(self) -> int:
        return self.matrix.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix."""
        return self.matrix.dtype

    @property
    def stored(self) -> Tensor:
        """The matrix as it lies in memory."""
        return self.matrix

    @property
    def tables(self) -> tuple[Tensor]:
        """The matrices whose rows its outputs are."""
        return (self.matrix,)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def rows(self, outputs: Tensor) -> Tensor:
        """[k, num_inputs]: the rows of W of the outputs [k] int64."""
        return self.matrix[outputs]

    def to(self, dtype: torch.dtype) -> LinearWeight:
        """The same weight with its matrix in another dtype."""
        return LinearWeight(self.matrix.to(dtype), self.bias)

    def before(self, matrix: Tensor | None) -> LinearWeight:
        """The same weight, which a pass reads just before this matrix, or this part of one."""
        return replace(self, next_matrix=matrix)

    def narrow(self, start: int, length: int) -> LinearWeight:
        """Outputs `start` to `start + length`, as views."""
        bias = None if self.bias is None else self.bias.narrow(0, start, length)
        return LinearWeight(self.matrix.narrow(0, start, length), bias)

    def split(self, *lengths: int) -> list[LinearWeight]:
        """The first outputs, the next and so on, as views."""
        starts = accumulate(lengths, initial=0)
        return [self.narrow(start, length) for start, length in zip(starts, lengths, strict=False)]
