"""Plain-PyTorch twins of the products of a decoder that start with a norm."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.reference.activation import silu_mul
from rsd_kernels.reference.linear import linear
from rsd_kernels.reference.norm import rms_norm


def norm_linear(
    x: Tensor,  # [n, K]
    norm: Tensor,  # [K]
    eps: float,
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    *,
    normed: Tensor,  # [n, K] scratch
    out: Tensor,  # [n, N]
) -> Tensor:
    """rms_norm(x) Wᵀ + bias.

    Returns:
        `out`. What `normed` holds afterwards means nothing.
    """
    rms_norm(x, norm, eps, out=normed)
    return linear(normed, weight, bias, out=out)


def norm_gate_up(
    x: Tensor,  # [n, K]
    norm: Tensor,  # [K]
    eps: float,
    weight: Tensor,  # [2 * N, K]: gate, then up
    bias: Tensor | None = None,  # [2 * N]
    *,
    normed: Tensor,  # [n, K] scratch
    gate_up: Tensor,  # [n, 2 * N] scratch
    out: Tensor,  # [n, N]
) -> Tensor:
    """silu(g) * u, where g and u are the halves of rms_norm(x) Wᵀ + bias.

    Returns:
        `out`. What `normed` and `gate_up` hold afterwards means nothing.
    """
    norm_linear(x, norm, eps, weight, bias, normed=normed, out=gate_up)
    return silu_mul(gate_up, out=out)


def last_rows_norm(
    x: Tensor,  # [n, K]
    seq_start: Tensor,  # [S + 1] int32: rows seq_start[s]:seq_start[s + 1] are sequence s
    norm: Tensor,  # [K]
    eps: float,
    *,
    out: Tensor,  # [S, K]
) -> Tensor:
    """rms_norm of the last row of every sequence.

    Returns:
        `out`. Its row of a sequence without rows means nothing.
    """
    row = (seq_start[1:] - 1).clamp_(min=0)
    torch.index_select(x, 0, row, out=out)
    return rms_norm(out, norm, eps, out=out)
