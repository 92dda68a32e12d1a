"""Tensors that the checks of kernels share, and how far a result may be off."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.kernels.harness.child import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# The interpreter keeps bfloat16 as integers and multiplies those in a dot product.
DOT_DTYPES = (torch.float32, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def far_pages(folder: Path, num_pages: int, sizes: tuple[int, ...]) -> Tensor:
    """fp16 pages of `sizes`, 2^30 elements apart: from page 2 on, offsets need 64 bits.

    On a CPU they lie in a sparse file, of which only what is written takes room.
    """
    stride = 1 << 30
    if INTERPRETED:
        shape = (num_pages * stride,)
        memory = torch.from_numpy(np.memmap(folder / "pages", np.float16, "w+", shape=shape))
    else:
        memory = torch.empty(num_pages * stride, dtype=torch.float16, device=DEVICE)
    inner = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return memory.as_strided((num_pages, *sizes), (stride, *inner))


def assert_close(result: Tensor, plain: Tensor, exact: Tensor, *, num_terms: int) -> None:
    """The kernel's error is at most twice that of plain PyTorch in the same dtype.

    Both are measured against float64, by their largest element. Where PyTorch is lucky, what one
    rounding to the dtype and a plain fp32 sum of `num_terms` terms cost is allowed in its place.
    """
    assert result.shape == exact.shape
    assert bool(result.isfinite().all()), "not finite"
    if exact.numel() == 0:
        return
    error = (result.double() - exact).abs().max().item()
    of_pytorch = (plain.double() - exact).abs().max().item()
    summing = torch.finfo(torch.float32).eps * num_terms**0.5
    floor = max(torch.finfo(result.dtype).eps, summing) * exact.abs().max().item()
    assert error <= max(2 * of_pytorch, floor), f"error {error:.3g}, PyTorch has {of_pytorch:.3g}"


def rows(count: int, width: int, seed: int) -> Tensor:
    """Normal numbers in rows that lie apart, with NaN between them."""
    generator = torch.Generator().manual_seed(seed)
    padded = torch.full((count, width + 8), float("nan"))
    padded[:, :width] = torch.randn(count, width, generator=generator)
    return padded[:, :width]


def nan(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def strided_pages(
    num_pages: int, per_page: int, heads: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """K and V pages as the pool cuts them: planes inside larger pages, all NaN."""
    plane = per_page * heads * width
    stride = 3 * plane + 8
    buffer = torch.full((num_pages * stride,), float("nan"), dtype=dtype)
    shape, strides = (num_pages, per_page, heads, width), (stride, heads * width, width, 1)
    return (
        buffer,
        buffer.as_strided(shape, strides, 8),
        buffer.as_strided(shape, strides, plane + 8),
    )


def close(actual: Tensor, wanted: Tensor) -> None:
    """Within a few roundings of the dtype of `actual`, relative to the largest value."""
    assert actual.shape == wanted.shape
    error = (actual.double() - wanted.double()).abs().max()
    assert error <= 8 * torch.finfo(actual.dtype).eps * max(1.0, float(wanted.abs().max()))
