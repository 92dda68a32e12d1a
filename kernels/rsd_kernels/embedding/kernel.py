"""The embedding of new tokens in Triton.

out[n] = table[token[n]] * scale, and 0 where the table has no such row: in a pass of fixed size
the tokens of padding are arbitrary. This kernel never starts early: it is the first of a pass, and
those after it rely on everything before the pass having ended (`rsd_kernels.overlap`).

Twin: `rsd_kernels.embedding.twin`.
"""

from __future__ import annotations

import torch
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
def _embed_kernel(
    table: tl.tensor,  # [num_tokens, WIDTH]
    token: tl.tensor,  # [N]
    out: tl.tensor,  # [N, WIDTH]
    scale: tl.tensor,
    stride_table: tl.tensor,
    stride_out: tl.tensor,
    NUM_TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    i_token = tl.load(token + i_row).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_known = (o < WIDTH) & (i_token >= 0) & (i_token < NUM_TOKENS)
    b_row = tl.load(table + i_token * stride_table + o, mask=m_known, other=0.0)
    b_row = (b_row.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + i_row * stride_out + o, b_row, mask=o < WIDTH)


def embed(
    table: Tensor,  # [vocab_size, width]
    token: Tensor,  # [N] int32
    *,
    scale: float = 1.0,
    out: Tensor,  # [N, width]
) -> Tensor:
    """Row `token[n]` of the table times `scale`, or zeros if there is no such row. Returns `out`.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    if table.dim() != 2 or token.dim() != 1:
        raise ValueError(
            f"table and token have shapes {list(table.shape)} and {list(token.shape)}; "
            "they must have 2 dimensions and 1 dimension"
        )
    check_shape("out", out, (token.shape[0], table.shape[1]))
    check_dtype("table", table, *FLOAT_DTYPES)
    check_dtype("out", out, table.dtype)
    check_dtype("token", token, torch.int32)
    for name, tensor in (("table", table), ("token", token), ("out", out)):
        check_last_contiguous(name, tensor)
    check_devices(table=table, token=token, out=out)
    embed_launch(table, token, scale=scale, out=out).run()
    return out


def embed_launch(table: Tensor, token: Tensor, *, scale: float = 1.0, out: Tensor) -> Launch:
    """The launch of `embed`, with the same arguments."""
    num_rows, width = out.shape
    return Launch(
        kernel=_embed_kernel,
        grid=(num_rows, ceil_div(width, _BLOCK)),
        args={
            "table": table,
            "token": token,
            "out": out,
            "scale": scale,
            "stride_table": table.stride(0),
            "stride_out": out.stride(0),
            "NUM_TOKENS": table.shape[0],
            "WIDTH": width,
            "BLOCK": _BLOCK,
        },
    )
