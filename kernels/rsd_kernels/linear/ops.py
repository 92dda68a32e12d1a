"""The matrix products of a decoder on a GPU, with their norms, activations and residuals.

Up to 16 rows each is one launch: of `rsd_kernels.linear.kernel`, or of the CUDA library where it is
given and takes them. More rows are a plain product by cuBLAS with a Triton kernel before or after
it. Nothing is allocated: outputs and scratch are given.

Twins: `rsd_kernels.linear.twin`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.activation.kernel import silu_mul
from rsd_kernels.cuda import decode_projection
from rsd_kernels.cuda.library import Library
from rsd_kernels.launch import (
    FLOAT_DTYPES,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
)
from rsd_kernels.linear.kernel import MAX_ROWS, projection_launch
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.kernel import rms_norm

# Without this, releases of PyTorch take a workspace for cuBLASLt (products with a bias) from their
# allocator at every call; with it, the one that cuBLAS has for the stream. Read at the first call.
os.environ.setdefault("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "1")


def linear(
    x: Tensor,  # [n, K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    *,
    residual: Tensor | None = None,  # [n, N], added to the product; may be `out` itself
    out: Tensor | None = None,  # [n, N]
    cuda_library: Library | None = None,  # multiplies the rows that it takes
) -> Tensor:
    """x Wᵀ + bias + residual, all of one dtype; without a residual `out` may also be fp32.

    Returns:
        [n, N]; `out` itself when it is given.

    Raises:
        ValueError: an argument's shape, dtype, strides or device is not one it can take.
    """
    if out is None:
        out = x.new_empty(*x.shape[:1], *weight.shape[:1])
    check_product(x, weight, bias, out=out, num_outputs=out.shape[-1])
    if residual is not None:
        check_shape("residual", residual, tuple(out.shape))
        check_dtype("residual", residual, x.dtype)
        check_dtype("out", out, x.dtype)
        check_last_contiguous("residual", residual)
        check_devices(x=x, residual=residual)
    if x.shape[0] <= MAX_ROWS:
        _project(cuda_library, x, LinearWeight(weight, bias), out=out, residual=residual)
        return out
    return _by_cublas(x, weight, bias, residual, out)


def norm_linear(
    x: Tensor,  # [n, K]
    norm: Tensor,  # [K]
    eps: float,
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    *,
    normed: Tensor,  # [n, K] scratch
    out: Tensor,  # [n, N]
    cuda_library: Library | None = None,  # multiplies the rows that it takes
) -> Tensor:
    """rms_norm(x) Wᵀ + bias; `out` may also be fp32.

    Returns:
        `out`. What `normed` holds afterwards means nothing.

    Raises:
        ValueError: an argument's shape, dtype, strides or device is not one it can take.
    """
    check_product(x, weight, bias, out=out, num_outputs=out.shape[-1])
    check_norm(x, norm, normed)
    if x.shape[0] <= MAX_ROWS:
        _project(cuda_library, x, LinearWeight(weight, bias), out=out, norm=norm, eps=eps)
        return out
    return _by_cublas(rms_norm(x, norm, eps, out=normed), weight, bias, None, out)


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
    cuda_library: Library | None = None,  # multiplies the rows that it takes
) -> Tensor:
    """silu(g) * u, where g and u are the halves of rms_norm(x) Wᵀ + bias.

    Returns:
        `out`. What `normed` and `gate_up` hold afterwards means nothing.

    Raises:
        ValueError: an argument's shape, dtype, strides or device is not one it can take.
    """
    check_product(x, weight, bias, out=out, num_outputs=2 * out.shape[-1])
    check_norm(x, norm, normed)
    check_dtype("out", out, x.dtype)
    if x.shape[0] <= MAX_ROWS:
        fused = {"norm": norm, "eps": eps, "gated": True}
        _project(cuda_library, x, LinearWeight(weight, bias), out=out, **fused)
        return out
    check_shape("gate_up", gate_up, (x.shape[0], weight.shape[0]))
    check_dtype("gate_up", gate_up, x.dtype)
    _by_cublas(rms_norm(x, norm, eps, out=normed), weight, bias, None, gate_up)
    return silu_mul(gate_up, out=out)


def _project(
    cuda_library: Library | None, x: Tensor, weight: LinearWeight, *, out: Tensor, **fused: Any
) -> None:
    """One launch of at most `MAX_ROWS` rows; `fused` as in `projection_launch`."""
    if cuda_library is None or not decode_projection.launch(
        cuda_library, x, weight, out=out, **fused
    ):
        projection_launch(x, weight.matrix, weight.bias, out=out, **fused).run()


def _by_cublas(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor
) -> Tensor:
    if out.dtype != x.dtype:
        torch.mm(x, weight.t(), out.dtype, out=out)
        return out if bias is None else out.add_(bias)
    if residual is None:
        if bias is None:
            return torch.mm(x, weight.t(), out=out)
        return torch.addmm(bias, x, weight.t(), out=out)
    torch.addmm(residual, x, weight.t(), out=out)
    return out if bias is None else out.add_(bias)


def check_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor, num_outputs: int
) -> None:
    """Raises ValueError unless these make a product, `out` perhaps in fp32."""
    for name, tensor in (("x", x), ("weight", weight), ("out", out)):
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have 2 dimensions")
    num_rows, num_inputs = x.shape
    if not num_inputs:
        raise ValueError(f"x has shape {list(x.shape)}; its rows must not be empty")
    check_shape("weight", weight, (num_outputs, num_inputs))
    check_shape("out", out, (num_rows, out.shape[1]))
    check_dtype("x", x, *FLOAT_DTYPES)
    check_dtype("weight", weight, x.dtype)
    check_dtype("out", out, x.dtype, torch.float32)
    if bias is not None:
        check_shape("bias", bias, (num_outputs,))
        check_dtype("bias", bias, x.dtype)
        check_last_contiguous("bias", bias)
    for name, tensor in (("x", x), ("weight", weight), ("out", out)):
        check_last_contiguous(name, tensor)
    check_devices(x=x, weight=weight, bias=bias, out=out)


def check_norm(x: Tensor, norm: Tensor, normed: Tensor) -> None:
    """Raises ValueError unless the rows of x can be normed, with `normed` as scratch."""
    check_shape("norm", norm, tuple(x.shape[1:]))
    check_dtype("norm", norm, x.dtype)
    check_last_contiguous("norm", norm)
    check_shape("normed", normed, tuple(x.shape))
    check_dtype("normed", normed, x.dtype)
    check_devices(x=x, norm=norm, normed=normed)
