"""The twin of a product against float64, and how it calls BLAS."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.linear import twin as linear_module
from rsd_kernels.linear.twin import cpu_layout, linear

NAN = float("nan")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 9, 16, 17])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_linear(
    capability: str, num_rows: int, bias: bool, residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of calling BLAS, with and without `out`, which may be the residual itself."""
    monkeypatch.setattr(linear_module, "_capability", lambda: capability)
    x, weight = torch.randn(num_rows, 24), torch.randn(10, 24)
    b = torch.randn(10) if bias else None
    r = torch.randn(num_rows, 10) if residual else None
    wanted = x.double() @ weight.double().T
    wanted = wanted + (b.double() if b is not None else 0) + (r.double() if r is not None else 0)
    torch.testing.assert_close(linear(x, weight, b, residual=r).double(), wanted, rtol=0, atol=1e-5)
    out = torch.full((num_rows, 10), NAN) if r is None else r
    assert linear(x, weight, b, residual=r, out=out) is out
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)


def test_linear_split_over_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 24), torch.randn(12, 24)
    monkeypatch.setattr(linear_module, "_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


@pytest.mark.parametrize("num_rows", [3, 4, 8, 15, 16])
def test_linear_over_a_large_weight(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of 64 columns, and plainly where they do not come out even."""
    monkeypatch.setattr(linear_module, "_capability", lambda: "AVX512")
    x, weight = torch.randn(num_rows, 128), torch.randn(4097, 128)
    wanted = x.double() @ weight.double().T
    out = torch.full((num_rows, 4097), NAN)
    for columns in (4096, 4097):
        got = linear(x, weight[:columns], out=out[:, :columns])
        torch.testing.assert_close(got.double(), wanted[:, :columns], rtol=0, atol=1e-4)


def test_linear_layouts() -> None:
    small, odd = (10, 24), (9, 24)
    assert cpu_layout(1, small, 2, "AVX2") == "split"
    assert cpu_layout(1, odd, 2, "AVX2") == "plain"
    assert cpu_layout(1, small, 1, "AVX2") == "plain"
    assert cpu_layout(2, odd, 2, "AVX2") == cpu_layout(16, odd, 2, "AVX2") == "transposed"
    assert cpu_layout(17, small, 2, "AVX2") == cpu_layout(0, small, 2, "AVX2") == "plain"
    assert {cpu_layout(n, small, 2, "AVX512") for n in (1, 2, 8, 64)} == {"plain"}
    large = (4096, 128)
    assert {cpu_layout(n, large, 2, "AVX512") for n in (0, 1, 3, 16, 64)} == {"plain"}
    assert {cpu_layout(n, large, 2, "AVX512") for n in (4, 8, 15)} == {"batched"}
    assert cpu_layout(8, (4097, 128), 2, "AVX512") == "plain"
    assert cpu_layout(8, (4032, 128), 2, "AVX512") == "plain"
    assert cpu_layout(8, large, 2, "DEFAULT") == "plain"
