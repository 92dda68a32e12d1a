"""Plain-PyTorch twins of RMSNorm (Zhang and Sennrich, 2019), of whole rows or single heads."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64)


def rms_norm(
    x: Tensor,  # [..., width]
    weight: Tensor,  # [width]
    eps: float,
    *,
    residual: Tensor | None = None,  # [..., width]; may be `out` itself
    out: Tensor | None = None,  # [..., width]; may be `x` itself
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight + residual, in fp32 (in fp64 for fp64 input).

    Returns:
        [..., width] in the dtype of `x`; `out` itself when it is given.
    """
    wide = x if x.dtype in _WIDE else x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.addcmul(
        _constant(eps, wide.dtype, wide.device), norm, norm, value=1 / x.shape[-1]
    ).rsqrt_()
    if residual is not None:
        normed = (wide * scale).mul_(weight).add_(residual)
        return normed.to(x.dtype) if out is None else out.copy_(normed)
    if wide is x:
        return torch.mul(x, scale, out=out).mul_(weight)
    normed = (wide * scale).mul_(weight)
    return normed.to(x.dtype) if out is None else out.copy_(normed)


@functools.cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A scalar tensor, cached, since making one takes as long as using it."""
    return torch.tensor(value, dtype=dtype, device=device)


def rows_norm(
    x: Tensor,  # [n, K]
    row_end: Tensor,  # [M] int32: a row that is wanted, plus 1
    norm: Tensor,  # [K]
    eps: float,
    *,
    out: Tensor,  # [M, K]
) -> Tensor:
    """rms_norm of some rows.

    Returns:
        `out`. Where `row_end` is 0 it is undefined.
    """
    row = (row_end - 1).clamp_(min=0)
    torch.index_select(x, 0, row, out=out)
    return rms_norm(out, norm, eps, out=out)
