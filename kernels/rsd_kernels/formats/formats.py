"""The formats in which the rows of a matrix may be stored: plain elements, and blocks of GGUF."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MatrixFormat:
    """How a row is stored: as a whole number of blocks."""

    name: str  # as GGUF calls it
    number: int  # in csrc/cpu/rsd_cpu.h
    block_length: int  # elements
    block_bytes: int
    dtype: torch.dtype | None = None  # of a plain element

    def row_bytes(self, num_inputs: int) -> int:
        """Bytes of a row.

        Raises:
            ValueError: `num_inputs` is no whole number of blocks.
        """
        blocks, rest = divmod(num_inputs, self.block_length)
        if rest:
            raise ValueError(
                f"{self.name} stores rows in blocks of {self.block_length}; "
                f"{num_inputs} elements are no whole number of them"
            )
        return blocks * self.block_bytes


F32 = MatrixFormat("F32", 0, 1, 4, torch.float32)
BF16 = MatrixFormat("BF16", 1, 1, 2, torch.bfloat16)
F16 = MatrixFormat("F16", 2, 1, 2, torch.float16)
Q4_0 = MatrixFormat("Q4_0", 3, 32, 18)
Q4_1 = MatrixFormat("Q4_1", 4, 32, 20)
Q5_0 = MatrixFormat("Q5_0", 5, 32, 22)
Q5_1 = MatrixFormat("Q5_1", 6, 32, 24)
Q8_0 = MatrixFormat("Q8_0", 7, 32, 34)
Q4_K = MatrixFormat("Q4_K", 8, 256, 144)
Q5_K = MatrixFormat("Q5_K", 9, 256, 176)
Q6_K = MatrixFormat("Q6_K", 10, 256, 210)

FORMATS = {
    form.name: form for form in (F32, BF16, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)
}
PLAIN = {form.dtype: form for form in FORMATS.values() if form.dtype is not None}
