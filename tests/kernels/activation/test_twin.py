"""The twin of the activation against its formula in float64."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.activation.twin import silu_mul
from tests.kernels.harness.tensors import close

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 14).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    close(silu_mul(gate_up), gate / (1 + torch.exp(-gate)) * up)
    out = torch.full((3, 7), NAN, dtype=dtype)
    assert silu_mul(gate_up, out=out) is out
    assert torch.equal(out, silu_mul(gate_up))
