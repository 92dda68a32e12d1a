"""Random matrices in every format."""

from __future__ import annotations

import numpy as np
import torch

from rsd_kernels.formats.formats import Q4_1, Q4_K, Q5_1, Q5_K, Q6_K, MatrixFormat
from rsd_kernels.formats.weight import StoredMatrix

_MINIMA = (Q4_1, Q5_1, Q4_K, Q5_K)


def random_matrix(
    form: MatrixFormat, num_outputs: int, num_inputs: int, seed: int = 0
) -> StoredMatrix:
    """Random bits, but for scales: those are normal."""
    rng = np.random.default_rng(seed)
    if form.dtype is not None:
        return StoredMatrix.of(
            torch.from_numpy(rng.standard_normal((num_outputs, num_inputs))).to(form.dtype)
        )
    rows = rng.integers(0, 256, (num_outputs, form.row_bytes(num_inputs)), dtype=np.uint8)
    blocks = rows.reshape(-1, form.block_bytes)
    for at in (208,) if form == Q6_K else (0, 2) if form in _MINIMA else (0,):
        scales = (rng.standard_normal((len(blocks), 1)) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return StoredMatrix(form, torch.from_numpy(rows), num_inputs)
