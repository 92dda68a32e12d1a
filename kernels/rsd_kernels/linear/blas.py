"""Products by BLAS: one plain call, or on a CPU the layout that is fastest there.

With AVX2 only (two Zen 3 cores, fp32, all products of a 135M-parameter model) one row takes 33 ms
as `x @ W.t()` and 18 ms when every thread gets its own slab of W; eight rows take 75 ms, and 40 ms
as `W @ x.t()`. With AVX-512 (Sapphire Rapids) the plain call is fastest for up to three rows and
from sixteen on. Between them it is slow once W is larger than the cache: eight rows take 111 ms on
one core, and 66 ms as a batch of small products with 64 rows of W each. The choice depends on
shapes and the machine, never on a clock, so equal calls give equal bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rsd_kernels.linear.weight import LinearWeight

MAX_TRANSPOSED_ROWS = 16
BATCHED_ROWS = range(4, 16)
BATCHED_MATRIX_SIZE = 2**19  # a smaller matrix stays in the cache, where the plain call wins
SLAB_OUTPUTS = 64

Layout = Literal["plain", "split", "transposed", "batched"]


def plain_product(
    x: Tensor,  # [n, K]
    weight: LinearWeight,  # [N, K]
    residual: Tensor | None,  # [n, N]
    out: Tensor | None,  # [n, N]
) -> Tensor:
    """x Wᵀ + bias + residual, in one call unless there are both a bias and a residual."""
    matrix, bias = weight.matrix.t(), weight.bias
    if residual is not None:
        product = torch.addmm(residual, x, matrix, out=out)
        return product if bias is None else product.add_(bias)
    if bias is not None:
        return torch.addmm(bias, x, matrix, out=out)
    return torch.mm(x, matrix, out=out)


def cpu_product(
    x: Tensor,  # [n, K]
    matrix: Tensor,  # [N, K]
) -> Tensor | None:
    """x Wᵀ in the layout that is fastest on this CPU; None where a plain call is."""
    if x.device.type != "cpu" or not matrix.is_contiguous():
        return None
    layout = cpu_layout(x.shape[0], matrix.shape, torch.get_num_threads(), _capability())
    return None if layout == "plain" else _PRODUCTS[layout](x, matrix)


def cpu_layout(
    num_rows: int, matrix_shape: Sequence[int], num_threads: int, capability: str
) -> Layout:
    """The fastest way to multiply `num_rows` rows by a matrix [num_outputs, num_inputs]."""
    num_outputs, num_inputs = matrix_shape
    if capability == "AVX512":
        large = num_outputs * num_inputs >= BATCHED_MATRIX_SIZE and num_outputs % SLAB_OUTPUTS == 0
        return "batched" if large and num_rows in BATCHED_ROWS else "plain"
    if capability != "AVX2" or num_rows == 0:
        return "plain"
    if num_rows == 1 and num_threads > 1 and num_outputs % num_threads == 0:
        return "split"
    return "transposed" if 1 < num_rows <= MAX_TRANSPOSED_ROWS else "plain"


@functools.cache
def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _split(x: Tensor, matrix: Tensor) -> Tensor:
    """One row: a batch of as many slabs of W as there are threads, each of which reads its own."""
    num_threads = torch.get_num_threads()
    num_outputs, num_inputs = matrix.shape
    slabs = matrix.view(num_threads, num_outputs // num_threads, num_inputs)
    return torch.bmm(slabs, x.t().expand(num_threads, num_inputs, 1)).view(1, num_outputs)


def _batched(x: Tensor, matrix: Tensor) -> Tensor:
    """Some rows: a batch of slabs of W, each small enough for the inner cache."""
    num_rows, (num_outputs, num_inputs) = x.shape[0], matrix.shape
    slabs = matrix.view(-1, SLAB_OUTPUTS, num_inputs).transpose(1, 2)
    product = torch.bmm(x.expand(slabs.shape[0], num_rows, num_inputs), slabs)
    return product.transpose(0, 1).reshape(num_rows, num_outputs)


_PRODUCTS = {
    "split": _split,
    "transposed": lambda x, matrix: torch.mm(matrix, x.t()).t(),
    "batched": _batched,
}
