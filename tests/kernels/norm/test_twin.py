"""The twins of the norms against formulas in float64."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.norm.twin import rms_norm
from tests.kernels.harness.tensors import close

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 8), (0, 16)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype)
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    if x.numel():
        close(rms_norm(x, weight, 1e-3), wanted)
    out = torch.full_like(x, NAN)
    assert rms_norm(x, weight, 1e-3, out=out) is out
    assert torch.equal(out, rms_norm(x, weight, 1e-3))
    rms_norm(x, weight, 1e-3, out=x)
    assert torch.equal(out, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_adds(dtype: torch.dtype) -> None:
    x, weight, residual = (torch.randn(size).to(dtype) for size in ((3, 40), (40,), (3, 40)))
    wide = x.double()
    normed = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    wanted = normed + residual.double()
    close(rms_norm(x, weight, 1e-3, residual=residual), wanted)
    assert rms_norm(x, weight, 1e-3, residual=residual, out=residual) is residual
    close(residual, wanted)


def test_rms_norm_sums_in_fp32() -> None:
    """1000² overflows fp16."""
    x = torch.full((1, 64), 1000.0, dtype=torch.float16)
    close(rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6), torch.ones(1, 64))
