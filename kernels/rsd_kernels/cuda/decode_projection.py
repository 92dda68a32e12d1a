"""Decode projection on the CUDA library, for up to four rows.

y[r, n] = sum_k x[r, k] weight[n, k] (+ bias[n])

Twin: `rsd_kernels.cuda.twin`. Kernel: `csrc/decode_projection.cu`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.cuda import library as cuda_library

MAX_ROWS = 4

_VECTOR_BYTES = 16
# The numbers of RSD_DTYPE_* in csrc/rsd_kernels.h.
_DTYPE_CODE = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


def decode_projection(
    x: Tensor,  # [num_rows, num_inputs]
    weight: Tensor,  # [num_outputs, num_inputs]
    bias: Tensor | None = None,  # [num_outputs]
    *,
    out: Tensor | None = None,  # [num_rows, num_outputs]
    overlap_previous: bool = False,
) -> Tensor:
    """x Wᵀ + bias, summed in float32, in the dtype of `x`; `out` itself when it is given.

    A row's result has the same bits whatever rows are beside it.

    overlap_previous: the kernel may fetch `weight` while the kernel before it on the stream still
        runs, so that one must not write `weight` or `bias`. Devices before sm_90 ignore it.

    Raises:
        ValueError: an argument's shape, dtype, strides, alignment or device is not one it can take.
        RuntimeError: the CUDA library is not there, or the launch failed.
    """
    if out is None:
        out = x.new_empty(x.shape[:1] + weight.shape[:1])
    check_arguments(x, weight, bias, out=out)
    library = cuda_library.load()
    if library is None:
        raise RuntimeError(f"decode_projection: the CUDA library is {cuda_library.status()}")
    code = library.decode_projection(
        out.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.shape[0],
        weight.shape[0],
        x.shape[1],
        out.stride(0),
        x.stride(0),
        weight.stride(0),
        _DTYPE_CODE[x.dtype],
        overlap_previous,
        x.device.index,
        torch.cuda.current_stream(x.device).cuda_stream,
    )
    library.check(code, "decode_projection")
    return out


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Everything the kernel takes for granted."""
    tensors = {"x": x, "weight": weight, "out": out}
    _check_shapes(tensors, bias)
    if bias is not None:
        tensors["bias"] = bias
    _check_dtypes(tensors)
    _check_layout(tensors)
    _check_devices(tensors)


def _check_shapes(tensors: dict[str, Tensor], bias: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have 2 dimensions")
    num_rows, num_inputs = tensors["x"].shape
    num_outputs = tensors["weight"].shape[0]
    if num_rows > MAX_ROWS:
        raise ValueError(f"x has {num_rows} rows; decode_projection takes at most {MAX_ROWS}")
    if tensors["weight"].shape[1] != num_inputs:
        raise ValueError(
            f"weight has shape {list(tensors['weight'].shape)}; "
            f"its second size must be that of x, {num_inputs}"
        )
    if tensors["out"].shape != (num_rows, num_outputs):
        raise ValueError(
            f"out has shape {list(tensors['out'].shape)}; it must be {[num_rows, num_outputs]}"
        )
    if bias is not None and bias.shape != (num_outputs,):
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be {[num_outputs]}")


def _check_dtypes(tensors: dict[str, Tensor]) -> None:
    dtype = tensors["x"].dtype
    if dtype not in _DTYPE_CODE:
        allowed = ", ".join(str(allowed) for allowed in _DTYPE_CODE)
        raise ValueError(f"x has dtype {dtype}; allowed: {allowed}")
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be that of x, {dtype}")


def _check_layout(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has strides {tensor.stride()}; its last dimension must be contiguous"
            )
    x = tensors["x"]
    per_vector = _VECTOR_BYTES // x.element_size()
    if x.shape[1] % per_vector != 0:
        raise ValueError(
            f"x has {x.shape[1]} columns; for {x.dtype} it must be a multiple of {per_vector}"
        )
    for name in ("x", "weight"):
        _check_aligned(name, tensors[name])


def _check_aligned(name: str, tensor: Tensor) -> None:
    if tensor.data_ptr() % _VECTOR_BYTES != 0:
        raise ValueError(
            f"{name} starts at an address that is not a multiple of {_VECTOR_BYTES} bytes; "
            "it must be (a view that starts inside a row may not be)"
        )
    row_bytes = tensor.stride(0) * tensor.element_size()
    if tensor.shape[0] > 1 and row_bytes % _VECTOR_BYTES != 0:
        raise ValueError(
            f"{name} has rows {row_bytes} bytes apart; it must be a multiple of {_VECTOR_BYTES}"
        )


def _check_devices(tensors: dict[str, Tensor]) -> None:
    device = tensors["x"].device
    if device.type != "cuda":
        raise ValueError(
            f"x is on {device}; this kernel runs on CUDA devices only "
            "(rsd_kernels.cuda.twin runs on any)"
        )
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on that of x, {device}")
