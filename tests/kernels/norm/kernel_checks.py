"""Norms in Triton against their twins. Run by `test_kernel.py`."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.norm import kernel as norms
from rsd_kernels.norm import twin as norm_twin
from rsd_kernels.norm.twin import rms_norm as rms_norm_twin
from tests.kernels.harness.tensors import DEVICE, DTYPES, assert_close, nan, rows

EPS = 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 24, 896, 1100])
@pytest.mark.parametrize("num_rows", [0, 3])
def test_rms_norm(num_rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = rows(num_rows, width, 1).to(dtype), rows(1, width, 2)[0].to(dtype)
    exact = rms_norm_twin(x.double(), weight.double(), EPS)
    plain = rms_norm_twin(x, weight, EPS)
    result = norms.rms_norm(x.to(DEVICE), weight.to(DEVICE), EPS)
    assert_close(result.cpu(), plain, exact, num_terms=width + 4)
    in_place = x.to(DEVICE, copy=True)
    assert norms.rms_norm(in_place, weight.to(DEVICE), EPS, out=in_place) is in_place
    assert torch.equal(in_place, result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_adds(dtype: torch.dtype) -> None:
    """To a part of wider rows, in place."""
    x, weight = rows(3, 40, 1).to(dtype), rows(1, 40, 2)[0].to(dtype)
    wide = rows(3, 48, 3).to(dtype)
    residual = wide[:, :40]
    exact = rms_norm_twin(x.double(), weight.double(), EPS, residual=residual.double())
    plain = rms_norm_twin(x, weight, EPS, residual=residual)
    whole = wide.to(DEVICE, copy=True)
    out = whole[:, :40]
    given = {"residual": out, "out": out}
    assert norms.rms_norm(x.to(DEVICE), weight.to(DEVICE), EPS, **given) is out
    assert_close(out.cpu(), plain, exact, num_terms=45)
    assert torch.equal(whole[:, 40:].cpu(), wide[:, 40:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_norm(dtype: torch.dtype) -> None:
    x, weight = rows(6, 40, 1).to(dtype), rows(1, 40, 2)[0].to(dtype)
    end = torch.tensor([1, 1, 4, 4, 0], dtype=torch.int32)
    tensors = {"x": x, "row_end": end, "norm": weight}
    out = norm_twin.rows_norm(**tensors, eps=EPS, out=torch.empty(5, 40, dtype=dtype))
    assert torch.equal(out[2], rms_norm_twin(x[3], weight, EPS))
    wide = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    exact = norm_twin.rows_norm(**wide, eps=EPS, out=torch.empty(5, 40).double())
    moved = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    result = norms.rows_norm(**moved, eps=EPS, out=nan(5, 40, dtype=dtype, device=DEVICE))
    assert_close(result.cpu(), out, exact, num_terms=44)
