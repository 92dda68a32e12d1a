"""Activations in Triton against their twins. Run by `test_kernel.py`."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.activation.kernel import silu_mul
from rsd_kernels.activation.twin import silu_mul as silu_mul_twin
from tests.kernels.harness.tensors import DEVICE, DTYPES, assert_close, rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 33, 1100])
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    gate_up = (rows(3, 2 * width, 1) * 4).to(dtype)
    exact, plain = silu_mul_twin(gate_up.double()), silu_mul_twin(gate_up)
    result = silu_mul(gate_up.to(DEVICE))
    assert_close(result.cpu(), plain, exact, num_terms=5)
