"""Weights of products in few bits, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rsd_kernels.grouped.matrix import GroupedMatrix
from rsd_kernels.linear.weight import LinearWeight


@dataclass(frozen=True)
class GroupedWeight:
    """W and bias of y = x Wᵀ + bias, where W is held in few bits."""

    matrix: GroupedMatrix  # [num_outputs, num_inputs]
    bias: Tensor | None = None  # [num_outputs]
    # What a pass reads next, of whatever format. The product fetches its beginning into the cache.
    next_matrix: Tensor | None = None

    @property
    def stored(self) -> Tensor:
        """[num_outputs, elements of a row]: the values as they lie in memory."""
        return self.matrix.values

    @property
    def tables(self) -> tuple[GroupedMatrix]:
        """The matrices whose rows its outputs are."""
        return (self.matrix,)

    @property
    def num_outputs(self) -> int:
        return self.matrix.num_outputs

    @property
    def num_inputs(self) -> int:
        return self.matrix.num_inputs

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def rows(self, outputs: Tensor) -> Tensor:
        """[k, num_inputs] float32: the rows of W of the outputs [k] int64."""
        return self.matrix.select(outputs).expand()

    def to(self, dtype: torch.dtype) -> LinearWeight:
        """The same weight, expanded."""
        return LinearWeight(self.matrix.expand().to(dtype), self.bias)

    def before(self, matrix: Tensor | None) -> GroupedWeight:
        """The same weight, which a pass reads just before this matrix, or this part of one."""
        return replace(self, next_matrix=matrix)


# Those that a GPU multiplies by.
DeviceWeight = LinearWeight | GroupedWeight
