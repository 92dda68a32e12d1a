"""The weight of a product: what every op takes where a bare matrix would not say how it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearWeight:
    """y = x Wᵀ + bias, with W as the checkpoint's product has it: [num_outputs, num_inputs]."""

    matrix: Tensor  # [num_outputs, num_inputs]
    bias: Tensor | None = None  # [num_outputs]

    @property
    def num_outputs(self) -> int:
        return self.matrix.shape[0]

    @property
    def num_inputs(self) -> int:
        return self.matrix.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """In which the matrix is stored."""
        return self.matrix.dtype

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def narrow(self, num_outputs: int) -> LinearWeight:
        """The first `num_outputs` outputs, as views."""
        bias = None if self.bias is None else self.bias[:num_outputs]
        return LinearWeight(self.matrix[:num_outputs], bias)
