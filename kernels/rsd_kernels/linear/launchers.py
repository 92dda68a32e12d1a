"""The matrix products of a decoder on a GPU, with the norm or activation around them.

Up to 16 rows are one launch: of `rsd_kernels.linear.kernel`, or of the CUDA library where it was
chosen and takes them. More rows are a plain product with a Triton kernel before or after it: by
cuBLAS, or, if the weight is in few bits, by `rsd_kernels.grouped.kernel`. Nothing is allocated:
outputs and scratch are given.

Twins: `rsd_kernels.linear.twin`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.activation.kernel import gate_mul
from rsd_kernels.cuda import decode_projection
from rsd_kernels.cuda.library import Library
from rsd_kernels.grouped.kernel import grouped_rows_launch
from rsd_kernels.grouped.operand import check_operand
from rsd_kernels.grouped.weight import DeviceWeight, GroupedWeight
from rsd_kernels.launch import (
    FLOAT_DTYPES,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
)
from rsd_kernels.linear.blas import plain_product
from rsd_kernels.linear.kernel import projection_launch
from rsd_kernels.linear.tiles import MAX_ROWS
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.kernel import rms_norm

# Without this PyTorch allocates a workspace for cuBLASLt (products with a bias) at every call; with
# it, cuBLASLt shares the workspace that cuBLAS has for the stream. Read at the first call.
os.environ.setdefault("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "1")


def linear(
    x: Tensor,  # [n, K]
    weight: DeviceWeight,  # [N, K]
    *,
    residual: Tensor | None = None,  # [n, N], added to the product; may be `out` itself
    out: Tensor | None = None,  # [n, N]
    cuda_library: Library | None = None,  # multiplies the rows that it takes
) -> Tensor:
    """x Wᵀ + bias + residual, all of one dtype; without a residual `out` may also be fp32.

    Returns:
        [n, N]; `out` itself when it is given.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    if out is None:
        out = x.new_empty(*x.shape[:1], weight.num_outputs)
    check_product(x, weight, out=out, num_outputs=out.shape[-1])
    if residual is not None:
        check_shape("residual", residual, tuple(out.shape))
        check_dtype("residual", residual, x.dtype)
        check_dtype("out", out, x.dtype)
        check_last_contiguous("residual", residual)
        check_devices(x=x, residual=residual)
    if x.shape[0] <= MAX_ROWS:
        _project(cuda_library, x, weight, out=out, residual=residual)
        return out
    return _many_rows(x, weight, residual, out)


def norm_linear(
    x: Tensor,  # [n, K]
    norm: Tensor | None,  # [K]; None: x is not normed
    eps: float,
    weight: DeviceWeight,  # [N, K]
    *,
    normed: Tensor,  # [n, K] scratch
    out: Tensor,  # [n, N]
    cuda_library: Library | None = None,  # multiplies the rows that it takes
) -> Tensor:
    """rms_norm(x) Wᵀ + bias; `out` may also be fp32.

    Returns:
        `out`. The contents of `normed` are undefined afterwards.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    check_product(x, weight, out=out, num_outputs=out.shape[-1])
    check_norm(x, norm, normed)
    if x.shape[0] <= MAX_ROWS:
        _project(cuda_library, x, weight, out=out, norm=norm, eps=eps)
        return out
    return _many_rows(_normed(x, norm, eps, normed), weight, None, out)


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
    cuda_library: Library | None = None,  # multiplies the rows that it takes
) -> Tensor:
    """silu(g) * u, or gelu(g) * u: g and u are the halves of rms_norm(x) Wᵀ + bias.

    Returns:
        `out`. The contents of `normed` and `gate_up` are undefined afterwards.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    check_product(x, weight, out=out, num_outputs=2 * out.shape[-1])
    check_norm(x, norm, normed)
    check_dtype("out", out, x.dtype)
    if x.shape[0] <= MAX_ROWS:
        fused = {"norm": norm, "eps": eps, "gated": True, "gelu": gelu}
        _project(cuda_library, x, weight, out=out, **fused)
        return out
    check_shape("gate_up", gate_up, (x.shape[0], weight.num_outputs))
    check_dtype("gate_up", gate_up, x.dtype)
    _many_rows(_normed(x, norm, eps, normed), weight, None, gate_up)
    return gate_mul(gate_up, gelu=gelu, out=out)


def _normed(x: Tensor, norm: Tensor | None, eps: float, normed: Tensor) -> Tensor:
    return x if norm is None else rms_norm(x, norm, eps, out=normed)


def _project(
    cuda_library: Library | None, x: Tensor, weight: DeviceWeight, *, out: Tensor, **fused: Any
) -> None:
    """One launch of at most `MAX_ROWS` rows; `fused` as in `projection_launch`."""
    if cuda_library is None or not decode_projection.launch(
        cuda_library, x, weight, out=out, **fused
    ):
        projection_launch(x, weight, out=out, **fused).run()


def _many_rows(x: Tensor, weight: DeviceWeight, residual: Tensor | None, out: Tensor) -> Tensor:
    if isinstance(weight, GroupedWeight):
        grouped_rows_launch(x, weight, out=out, residual=residual).run()
        return out
    if out.dtype == x.dtype:
        return plain_product(x, weight, residual, out)
    torch.mm(x, weight.matrix.t(), out.dtype, out=out)
    return out if weight.bias is None else out.add_(weight.bias)


def check_product(x: Tensor, weight: DeviceWeight, *, out: Tensor, num_outputs: int) -> None:
    """Raises ValueError unless x Wᵀ + bias can be launched; `out` may be fp32."""
    held, bias = weight.stored, weight.bias
    for name, tensor in (("x", x), ("weight", held), ("out", out)):
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have 2 dimensions")
    num_rows, num_inputs = x.shape
    if not num_inputs:
        raise ValueError(f"x has shape {list(x.shape)}; its rows must not be empty")
    check_dtype("x", x, *FLOAT_DTYPES)
    if isinstance(weight, LinearWeight):
        check_shape("weight", held, (num_outputs, num_inputs))
        check_dtype("weight", held, x.dtype)
    else:
        check_operand(weight.matrix, (num_outputs, num_inputs))
    check_shape("out", out, (num_rows, out.shape[1]))
    check_dtype("out", out, x.dtype, torch.float32)
    if bias is not None:
        check_shape("bias", bias, (num_outputs,))
        check_dtype("bias", bias, x.dtype)
        check_last_contiguous("bias", bias)
    for name, tensor in (("x", x), ("weight", held), ("out", out)):
        check_last_contiguous(name, tensor)
    check_devices(x=x, weight=held, bias=bias, out=out)


def check_norm(x: Tensor, norm: Tensor | None, normed: Tensor) -> None:
    """Raises ValueError unless rms_norm(x) can be launched, with `normed` as scratch."""
    if norm is None:
        return
    check_shape("norm", norm, tuple(x.shape[1:]))
    check_dtype("norm", norm, x.dtype)
    check_last_contiguous("norm", norm)
    check_shape("normed", normed, tuple(x.shape))
    check_dtype("normed", normed, x.dtype)
    check_devices(x=x, norm=norm, normed=normed)
