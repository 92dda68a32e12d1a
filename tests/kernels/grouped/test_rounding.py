"""Plain matrices that are rounded to few bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rsd_kernels.grouped.matrix import ValueKind
from rsd_kernels.grouped.rounding import rounded, scale_dtype

KINDS = list(ValueKind)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.02


def error(weight: Tensor, kind: ValueKind, group_size: int) -> float:
    """Root of the mean squares, of that of the weights."""
    found = rounded(weight, kind, group_size).expand() - weight
    return float(found.square().mean().sqrt() / weight.square().mean().sqrt())


@pytest.mark.parametrize(
    ("kind", "group_size", "most"),
    [
        (ValueKind.INT4, 32, 0.083), (ValueKind.INT4, 128, 0.099),
        (ValueKind.INT8, 128, 0.0065), (ValueKind.FP8, 128, 0.028),
    ],
)  # fmt: skip
def test_the_error_of_gaussian_weights(kind: ValueKind, group_size: int, most: float) -> None:
    assert 0.9 * most < error(gaussian(128, 1024), kind, group_size) < most


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ValueKind.INT4, torch.arange(-8.0, 8.0).repeat(2)),
        (ValueKind.INT8, torch.arange(-127.0, 128.0, 8.0)),
        (ValueKind.FP8, 448.0 / 2.0 ** torch.arange(32).div(2, rounding_mode="floor")),
    ],
)
def test_what_fits_is_exact(kind: ValueKind, values: Tensor) -> None:
    """Values of the format times a scale, either way up; a group of zeros; one value alone."""
    weight = torch.zeros(3, 96)
    weight[0, :32], weight[0, 32:64] = 0.25 * values, -0.25 * values
    weight[1, 64] = 2.0**-6
    found = rounded(weight, kind, 32)
    exact = (found.expand() - weight).abs() <= 1e-6 * weight.abs()
    assert exact.all(), found.expand()[~exact]
    assert found.zeros is None and found.order is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_are_rounded_by_themselves(kind: ValueKind, dtype: torch.dtype) -> None:
    """However many there are; and in float32, whatever they are stored in."""
    weight = gaussian(1030, 64).to(dtype)
    whole = rounded(weight, kind, 32)
    assert whole.scales.dtype == scale_dtype(kind)
    assert torch.equal(whole.expand(), rounded(weight.float(), kind, 32).expand())
    assert torch.equal(whole.expand()[1000:], rounded(weight[1000:], kind, 32).expand())


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_values_that_are_not_finite(value: float) -> None:
    weight = gaussian(4, 32)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="values that are not finite"):
        rounded(weight, ValueKind.INT8, 32)
