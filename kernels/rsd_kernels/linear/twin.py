"""Plain-PyTorch twin of the matrix products of a decoder: y = x Wᵀ (+ bias) (+ residual).

On a CPU it also chooses how to call BLAS. With AVX2 only (measured on two Zen 3 cores, fp32, all
products of a 135M-parameter model) one row takes 33 ms as `x @ W.t()` and 18 ms when every thread
gets its own slab of W; eight rows take 75 ms and, as `W @ x.t()`, 40 ms. With AVX-512 (Sapphire
Rapids) the plain call is the fastest for up to three rows and from sixteen on; between them it gets
slow once W is larger than the cache: eight rows take 111 ms on one core, and 66 ms as a batch of
small products with 64 rows of W each. The choice looks at shapes and at the machine, never at a
clock, so equal calls give equal bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rsd_kernels.activation.twin import silu_mul
from rsd_kernels.norm.twin import rms_norm

MAX_TRANSPOSED_ROWS = 16
BATCHED_ROWS = range(4, 16)
BATCHED_WEIGHT_SIZE = 2**19  # a smaller weight stays in the cache, and there the plain call wins
BATCHED_COLUMNS = 64

Layout = Literal["plain", "split", "transposed", "batched"]


def linear(
    x: Tensor,  # [n, K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    *,
    residual: Tensor | None = None,  # [n, N], added to the product; may be `out` itself
    out: Tensor | None = None,  # [n, N]
) -> Tensor:
    """x Wᵀ + bias + residual, all of one dtype.

    Returns:
        [n, N]; `out` itself when it is given.
    """
    if x.device.type != "cpu" or not weight.is_contiguous():
        return _plain(x, weight, bias, residual, out)
    layout = cpu_layout(x.shape[0], weight.shape, torch.get_num_threads(), _capability())
    if layout == "plain":
        return _plain(x, weight, bias, residual, out)
    product = _PRODUCTS[layout](x, weight)
    if bias is not None:
        product = product + bias
    if residual is not None:
        return torch.add(product, residual, out=out)
    return product if out is None else out.copy_(product)


def cpu_layout(
    num_rows: int, weight_shape: Sequence[int], num_threads: int, capability: str
) -> Layout:
    """The fastest way to multiply `num_rows` rows by a weight of shape [columns, width]."""
    num_columns, width = weight_shape
    if capability == "AVX512":
        large = num_columns * width >= BATCHED_WEIGHT_SIZE and num_columns % BATCHED_COLUMNS == 0
        return "batched" if large and num_rows in BATCHED_ROWS else "plain"
    if capability != "AVX2" or num_rows == 0:
        return "plain"
    if num_rows == 1 and num_threads > 1 and num_columns % num_threads == 0:
        return "split"
    return "transposed" if 1 < num_rows <= MAX_TRANSPOSED_ROWS else "plain"


@functools.cache
def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _plain(
    x: Tensor,  # [n, K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None,  # [N]
    residual: Tensor | None,  # [n, N]
    out: Tensor | None,  # [n, N]
) -> Tensor:
    if residual is None:
        if bias is None:
            return torch.mm(x, weight.t(), out=out)
        return torch.addmm(bias, x, weight.t(), out=out)
    product = torch.addmm(residual, x, weight.t(), out=out)
    return product if bias is None else product.add_(bias)


def _split(x: Tensor, weight: Tensor) -> Tensor:
    """One row: a batch of `num_threads` slabs of W, so every thread streams its own slab."""
    num_threads = torch.get_num_threads()
    num_columns, width = weight.shape
    slabs = weight.view(num_threads, num_columns // num_threads, width)
    return torch.bmm(slabs, x.t().expand(num_threads, width, 1)).view(1, num_columns)


def _transposed(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(weight, x.t()).t()


def _batched(x: Tensor, weight: Tensor) -> Tensor:
    """Some rows: a batch of slabs of W, each small enough for the inner cache."""
    num_rows, (num_columns, width) = x.shape[0], weight.shape
    slabs = weight.view(-1, BATCHED_COLUMNS, width).transpose(1, 2)
    product = torch.bmm(x.expand(slabs.shape[0], num_rows, width), slabs)
    return product.transpose(0, 1).reshape(num_rows, num_columns)


_PRODUCTS = {"split": _split, "transposed": _transposed, "batched": _batched}


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
