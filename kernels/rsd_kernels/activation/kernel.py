"""The gated activation of a decoder's MLP in Triton, on the results of a plain product.

out[n, i] = f(gate_up[n, i]) * gate_up[n, width + i]

f is silu(x) = x sigmoid(x), or GELU in its tanh form, which is x sigmoid(2 sqrt(2 / pi) (x +
0.044715 x³)).

Twin: `rsd_kernels.activation.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import (
    FLOAT_DTYPES,
    Launch,
    ceil_div,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
)

_BLOCK = 1024


@triton.jit
def gated(b_gate: tl.tensor, b_up: tl.tensor, GELU: tl.constexpr) -> tl.tensor:
    """f(gate) * up in fp32."""
    b_x = b_gate
    if GELU:
        b_x = 1.5957691216057308 * (b_gate + 0.044715 * b_gate * b_gate * b_gate)
    return b_gate * tl.sigmoid(b_x) * b_up


@triton.jit
def _gate_mul_kernel(
    gate_up: tl.tensor,  # [N, 2 * width]
    out: tl.tensor,  # [N, width]
    width: tl.tensor,
    stride_gate_up: tl.tensor,
    stride_out: tl.tensor,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = o < width
    p_gate = gate_up + i_row * stride_gate_up + o
    b_gate = tl.load(p_gate, mask=m, other=0.0).to(tl.float32)
    b_up = tl.load(p_gate + width, mask=m, other=0.0).to(tl.float32)
    b_out = gated(b_gate, b_up, GELU)
    tl.store(out + i_row * stride_out + o, b_out.to(out.dtype.element_ty), mask=m)


def gate_mul(
    gate_up: Tensor,  # [n, 2 * width]: gate, then up
    *,
    gelu: bool = False,
    out: Tensor | None = None,  # [n, width]
) -> Tensor:
    """silu(gate) * up or, with `gelu`, gelu(gate) * up: in fp32, rounded once.

    Returns:
        [n, width] in the dtype of `gate_up`; `out` itself when it is given.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has shape {list(gate_up.shape)}; it must be [n, 2 * width]")
    shape = (gate_up.shape[0], gate_up.shape[1] // 2)
    out = gate_up.new_empty(shape) if out is None else out
    check_shape("out", out, shape)
    check_dtype("gate_up", gate_up, *FLOAT_DTYPES)
    for name, tensor in (("gate_up", gate_up), ("out", out)):
        check_dtype(name, tensor, gate_up.dtype)
        check_last_contiguous(name, tensor)
    check_devices(gate_up=gate_up, out=out)
    gate_mul_launch(gate_up, gelu=gelu, out=out).run()
    return out


def gate_mul_launch(gate_up: Tensor, *, gelu: bool = False, out: Tensor) -> Launch:
    """The launch of `gate_mul`, with the same arguments."""
    num_rows, width = out.shape
    return Launch(
        kernel=_gate_mul_kernel,
        grid=(num_rows, ceil_div(width, _BLOCK)),
        args={
            "gate_up": gate_up,
            "out": out,
            "width": width,
            "stride_gate_up": gate_up.stride(0),
            "stride_out": out.stride(0),
            "GELU": gelu,
            "BLOCK": _BLOCK,
        },
    )
