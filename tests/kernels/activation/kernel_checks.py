"""Activations in Triton against their twins. Run by `test_kernel.py`."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.activation.kernel import gate_mul
from rsd_kernels.activation.twin import gate_mul as gate_mul_twin
from tests.kernels.harness.tensors import DEVICE, DTYPES, assert_close, rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 33, 1100])
@pytest.mark.parametrize("gelu", [False, True])
def test_gate_mul(gelu: bool, width: int, dtype: torch.dtype) -> None:
    gate_up = (rows(3, 2 * width, 1) * 4).to(dtype)
    exact, plain = (gate_mul_twin(given, gelu=gelu) for given in (gate_up.double(), gate_up))
    result = gate_mul(gate_up.to(DEVICE), gelu=gelu)
    assert_close(result.cpu(), plain, exact, num_terms=9 if gelu else 5)
