"""Weights of products in the bytes of their files, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rsd_kernels.formats.expand import expand
from rsd_kernels.formats.formats import PLAIN, MatrixFormat
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.linear.weight import LinearWeight


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix whose rows are as a file has them; often a view of the mapped file."""

    form: MatrixFormat
    rows: Tensor  # [num_outputs, bytes of a row] uint8, contiguous
    num_inputs: int

    @classmethod
    def of(cls, matrix: Tensor) -> StoredMatrix:
        """A plain matrix: a view of it, or of its copy in float32 if it is of another type."""
        if matrix.dtype not in PLAIN:
            matrix = matrix.float()
        matrix = matrix.contiguous()
        return cls(PLAIN[matrix.dtype], matrix.view(torch.uint8), matrix.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape[0], self.num_inputs

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def narrow(self, start: int, length: int) -> StoredMatrix:
        """Rows `start` to `start + length`, as a view."""
        return StoredMatrix(self.form, self.rows.narrow(0, start, length), self.num_inputs)

    def select(self, rows: Tensor) -> StoredMatrix:
        """The rows of these numbers [k] int64, copied."""
        return StoredMatrix(self.form, self.rows.index_select(0, rows), self.num_inputs)

    def expand(self) -> Tensor:
        """[num_outputs, num_inputs] float32."""
        return expand(self.rows, self.form)


@dataclass(frozen=True)
class StoredWeight:
    """W and bias of y = x Wᵀ + bias; the outputs of W are those of its parts, one after another."""

    parts: tuple[StoredMatrix, ...]  # at most three, of as many inputs
    bias: Tensor | None = None  # [num_outputs]

    @property
    def tables(self) -> tuple[StoredMatrix, ...]:
        """The matrices whose rows its outputs are."""
        return self.parts

    @property
    def num_outputs(self) -> int:
        return sum(part.shape[0] for part in self.parts)

    @property
    def num_inputs(self) -> int:
        return self.parts[0].num_inputs

    @property
    def nbytes(self) -> int:
        held = sum(part.nbytes for part in self.parts)
        return held + (0 if self.bias is None else self.bias.nbytes)

    def rows(self, outputs: Tensor) -> Tensor:
        """[k, num_inputs] float32: the rows of W of the outputs [k] int64."""
        return torch.cat([self.narrow(int(i), 1).parts[0].expand() for i in outputs])

    def to(self, dtype: torch.dtype) -> LinearWeight:
        """The same weight, expanded."""
        return LinearWeight(torch.cat([part.expand() for part in self.parts]).to(dtype), self.bias)

    def narrow(self, start: int, length: int) -> StoredWeight:
        """Outputs `start` to `start + length`, as views."""
        parts = []
        ends = list(accumulate(part.shape[0] for part in self.parts))
        for part, end in zip(self.parts, ends, strict=True):
            first = end - part.shape[0]
            low, high = max(start, first), min(start + length, end)
            if low < high:
                parts.append(part.narrow(low - first, high - low))
        bias = None if self.bias is None else self.bias.narrow(0, start, length)
        return StoredWeight(tuple(parts), bias)

    def split(self, *lengths: int) -> list[StoredWeight]:
        """The first outputs, the next and so on, as views."""
        starts = accumulate(lengths, initial=0)
        return [self.narrow(start, length) for start, length in zip(starts, lengths, strict=False)]


Weight = LinearWeight | StoredWeight | GroupedWeight
