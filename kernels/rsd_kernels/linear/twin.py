"""Plain-PyTorch twins of a decoder's matrix products, with the norm or activation around them."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.activation.twin import gate_mul
from rsd_kernels.grouped.weight import DeviceWeight, GroupedWeight
from rsd_kernels.linear.blas import cpu_product, plain_product
from rsd_kernels.norm.twin import rms_norm


def linear(
    x: Tensor,  # [n, K]
    weight: DeviceWeight,  # [N, K]
    *,
    residual: Tensor | None = None,  # [n, N], added to the product; may be `out` itself
    out: Tensor | None = None,  # [n, N]
) -> Tensor:
    """x Wᵀ + bias + residual, all of one dtype.

    Returns:
        [n, N]; `out` itself when it is given.
    """
    if isinstance(weight, GroupedWeight):
        weight = weight.to(x.dtype)
    product = cpu_product(x, weight.matrix)
    if product is None:
        return plain_product(x, weight, residual, out)
    if weight.bias is not None:
        product = product + weight.bias
    if residual is not None:
        return torch.add(product, residual, out=out)
    return product if out is None else out.copy_(product)


def norm_linear(
    x: Tensor,  # [n, K]
    norm: Tensor | None,  # [K]; None: x is not normed
    eps: float,
    weight: DeviceWeight,  # [N, K]
    *,
    normed: Tensor,  # [n, K] scratch
    out: Tensor,  # [n, N]
) -> Tensor:
    """rms_norm(x) Wᵀ + bias.

    Returns:
        `out`. The contents of `normed` are undefined afterwards.
    """
    if norm is None:
        return linear(x, weight, out=out)
    rms_norm(x, norm, eps, out=normed)
    return linear(normed, weight, out=out)


def norm_gate_up(
    x: Tensor,  # [n, K]
    norm: Tensor | None,  # [K]; None: x is not normed
    eps: float,
    weight: DeviceWeight,  # [2 * N, K]: gate, then up
    *,
    gelu: bool = False,
    normed: Tensor,  # [n, K] scratch
    gate_up: Tensor,  # [n, 2 * N] scratch
    out: Tensor,  # [n, N]
) -> Tensor:
    """silu(g) * u, or gelu(g) * u: g and u are the halves of rms_norm(x) Wᵀ + bias.

    Returns:
        `out`. The contents of `normed` and `gate_up` are undefined afterwards.
    """
    norm_linear(x, norm, eps, weight, normed=normed, out=gate_up)
    return gate_mul(gate_up, gelu=gelu, out=out)
