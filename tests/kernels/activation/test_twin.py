"""The twin of the activation against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from rsd_kernels.activation.twin import gate_mul
from tests.kernels.harness.tensors import close

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_mul(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 14).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    close(gate_mul(gate_up), gate / (1 + torch.exp(-gate)) * up)
    out = torch.full((3, 7), NAN, dtype=dtype)
    assert gate_mul(gate_up, out=out) is out
    assert torch.equal(out, gate_mul(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_mul_with_gelu(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 14).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    close(gate_mul(gate_up, gelu=True), 0.5 * gate * (1 + torch.tanh(inner)) * up)
