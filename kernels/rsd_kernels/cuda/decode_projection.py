"""Products of up to four rows by the CUDA library, with all that stands around them fused in.

An alternative to `rsd_kernels.linear.kernel` for `linear`, `norm_linear` and `norm_gate_up`, chosen
by RSD_DECODE_PROJECTION. Off by default until a GPU has shown that it is right and faster:
`python -m bench.kernels` tells both.

Twin: `rsd_kernels.linear.twin`. Kernel: `csrc/decode_projection.cu`.
"""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor

from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.cuda.library import Library, Projection
from rsd_kernels.grouped.weight import DeviceWeight, GroupedWeight
from rsd_kernels.launch import overlapping
from rsd_kernels.linear.weight import LinearWeight

logger = logging.getLogger("rsd_kernels")

SWITCH = "RSD_DECODE_PROJECTION"
IMPLEMENTATIONS = ("triton", "cuda")
MAX_ROWS = 4

# The numbers in csrc/rsd_kernels.h: RSD_DTYPE_* and RSD_PROJECTION_*.
DTYPE_CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
GATED, FLOAT32_OUT, OVERLAP_PREVIOUS = 1, 2, 4

_VECTOR_BYTES = 16


def chosen() -> str:
    """Which of IMPLEMENTATIONS the environment asks for: "triton" unless it says otherwise.

    Raises:
        ValueError: it asks for another one.
    """
    name = os.environ.get(SWITCH) or IMPLEMENTATIONS[0]
    if name not in IMPLEMENTATIONS:
        allowed = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"{SWITCH}={name!r} is not allowed; allowed: {allowed}")
    return name


def library_for(implementation: str) -> Library | None:
    """The CUDA library if `implementation` is "cuda", or None: Triton makes all products.

    That is so, with a warning, where "cuda" is asked for and the library is not there.
    """
    if implementation != "cuda":
        return None
    library = cuda_library.load()
    if library is None:
        _warn_once(f"decode products: {describe(implementation)}")
    return library


def describe(implementation: str) -> str:
    """What makes the products of a decode pass on a GPU, and why, in words."""
    if implementation != "cuda":
        return "Triton"
    if cuda_library.load() is None:
        return f"Triton ({SWITCH}=cuda, but the CUDA library is {cuda_library.status()})"
    return f"CUDA C++ for up to {MAX_ROWS} rows, else Triton"


def launch(
    library: Library,
    x: Tensor,  # [num_rows, num_inputs]
    weight: DeviceWeight,  # [num_outputs, num_inputs], [2 * num_outputs, num_inputs] if gated
    *,
    out: Tensor,  # [num_rows, num_outputs], of the dtype of x or fp32
    residual: Tensor | None = None,  # [num_rows, num_outputs]; may be `out` itself
    norm: Tensor | None = None,  # [num_inputs]
    eps: float = 0.0,
    gated: bool = False,
    gelu: bool = False,
) -> bool:
    """Launches one product on the current stream, or returns False if the kernel cannot take it.

    The arguments are as for `rsd_kernels.linear.kernel.projection_launch`, and are taken to be
    right. A row's result has the same bits whatever rows are beside it.

    Raises:
        CudaLibraryError: the launch failed.
    """
    if x.shape[0] > MAX_ROWS:
        return False
    reason = "its gate is SiLU, not GELU" if gelu else refusal(x, weight, norm)
    if reason is not None or isinstance(weight, GroupedWeight):
        _warn_once(f"decode products: Triton in place of CUDA C++, {reason}")
        return False
    projection = projection_struct(
        x, weight, out=out, residual=residual, norm=norm, eps=eps, gated=gated
    )
    stream = torch.cuda.current_stream(x.device).cuda_stream
    library.check(
        library.decode_projection(projection, x.get_device(), stream), "decode_projection"
    )
    return True


def refusal(x: Tensor, weight: DeviceWeight, norm: Tensor | None) -> str | None:
    """Why the kernel does not take operands of a product; None if it does."""
    if isinstance(weight, GroupedWeight):
        return f"the weight is in {weight.matrix.kind.value}"
    if x.dtype not in DTYPE_CODES or weight.dtype != x.dtype:
        return f"x has dtype {x.dtype} and the weight {weight.dtype}"
    per_vector = _VECTOR_BYTES // x.element_size()
    if x.shape[1] % per_vector:
        return f"x has {x.shape[1]} columns; for {x.dtype} it must be a multiple of {per_vector}"
    for name, tensor in (("x", x), ("the weight", weight.matrix), ("norm", norm)):
        if tensor is not None and not _rows_are_aligned(tensor):
            return f"{name} has rows that do not start at a multiple of {_VECTOR_BYTES} bytes"
    if not x.is_cuda:
        return f"x is on {x.device}; the kernel runs on CUDA devices"
    return None


def _rows_are_aligned(tensor: Tensor) -> bool:
    """True if every row, or a vector, starts at a multiple of 16 bytes."""
    if tensor.data_ptr() % _VECTOR_BYTES:
        return False
    one_row = tensor.dim() < 2 or tensor.shape[0] <= 1  # its stride may be anything
    return one_row or tensor.stride(0) * tensor.element_size() % _VECTOR_BYTES == 0


def projection_struct(
    x: Tensor,
    weight: LinearWeight,
    *,
    out: Tensor,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> Projection:
    """The arguments of `launch` as the library takes them."""
    flags = GATED if gated else 0
    if out.dtype == torch.float32:
        flags |= FLOAT32_OUT
    if overlapping(x.shape[0]):
        flags |= OVERLAP_PREVIOUS
    return Projection(
        y=out.data_ptr(),
        x=x.data_ptr(),
        weight=weight.matrix.data_ptr(),
        bias=_pointer(weight.bias),
        norm=_pointer(norm),
        residual=_pointer(residual),
        num_rows=x.shape[0],
        num_outputs=out.shape[1],
        num_inputs=x.shape[1],
        y_stride=out.stride(0),
        x_stride=x.stride(0),
        weight_stride=weight.matrix.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        eps=eps,
        dtype=DTYPE_CODES[x.dtype],
        flags=flags,
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
