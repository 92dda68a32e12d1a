"""Plain matrices rounded to blocks of GGUF by the CPU library."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.cpu import library as native
from rsd_kernels.formats.formats import Q4_1, Q8_0, MatrixFormat
from rsd_kernels.formats.weight import StoredMatrix

FORMATS = (Q4_1, Q8_0)


def quantise(matrix: Tensor, form: MatrixFormat) -> StoredMatrix:
    """A matrix [num_outputs, num_inputs] of floats on the CPU, in Q8_0 or Q4_1.

    Q8_0 has the bits of the twin, `rsd_kernels.formats.quantise`; Q4_1 adds up in another order.

    Raises:
        ValueError: the format is another, the rows are no whole number of its blocks, or a value is
            not finite or beyond the range of a half.
    """
    library = native.load()
    if library is None:
        raise RuntimeError(f"the CPU library is {native.status()}")
    if form not in FORMATS:
        allowed = " and ".join(known.name for known in FORMATS)
        raise ValueError(f"matrices are not quantised to {form.name}; only to {allowed}")
    plain = StoredMatrix.of(matrix)
    rows = torch.empty(plain.shape[0], form.row_bytes(plain.num_inputs), dtype=torch.uint8)
    given = native.Quantise(rows.data_ptr(), native.matrix_of(plain), plain.num_inputs, form.number)
    library.check(library.quantise(given, torch.get_num_threads()), f"quantising to {form.name}")
    return StoredMatrix(form, rows, plain.num_inputs)
