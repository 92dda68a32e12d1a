"""Head norms, rotary embedding and the store into pages, fused in Triton: one program a head.

q[n, h] <- rotate(norm(q[n, h])), k_pages[page[n], offset[n], h] <- rotate(norm(k[n, h])); v is
stored as it is. The norm is Qwen3's and may be absent. rotate(x) = x cos + swap(x) sin, where swap
exchanges the halves of a head and the first half of sin is negated.

Twin: `rsd_kernels.rope.twin`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import (
    FLOAT_DTYPES,
    Launch,
    check_contiguous,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
    debugging,
    next_power_of_2,
    overlapping,
)
from rsd_kernels.overlap import allow_next_kernel, wait_for_previous_kernel


@triton.jit
def _rope_kv_write_kernel(
    qkv: tl.tensor,  # [N, NUM_Q_HEADS + 2 * NUM_KV_HEADS, 2 * HALF]
    k_pages: tl.tensor,  # [num_pages, tokens_per_page, NUM_KV_HEADS, 2 * HALF]
    v_pages: tl.tensor,  # [num_pages, tokens_per_page, NUM_KV_HEADS, 2 * HALF]
    page: tl.tensor,  # [N]
    offset: tl.tensor,  # [N]
    cos: tl.tensor,  # [positions, 2 * HALF] fp32, contiguous
    sin: tl.tensor,  # [positions, 2 * HALF] fp32, contiguous
    position: tl.tensor,  # [N] or None
    q_norm: tl.tensor,  # [2 * HALF] or None
    k_norm: tl.tensor,  # [2 * HALF] or None
    eps: tl.tensor,
    stride_row: tl.tensor,
    stride_head: tl.tensor,
    stride_k_page: tl.tensor,
    stride_k_token: tl.tensor,
    stride_k_head: tl.tensor,
    stride_v_page: tl.tensor,
    stride_v_token: tl.tensor,
    stride_v_head: tl.tensor,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,  # at least HALF
    SCHEDULED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    allow_next_kernel(OVERLAP)
    if not SCHEDULED:
        wait_for_previous_kernel(OVERLAP)
    i_row, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_page = tl.load(page + i_row).to(tl.int64)
    i_offset = tl.load(offset + i_row)
    o = tl.arange(0, BLOCK)
    m = o < HALF
    m_angle = m & (i_page >= 0)  # padding may have any position
    i_angle = i_row if position is None else tl.load(position + i_row).to(tl.int64)
    p_cos, p_sin = cos + i_angle * (2 * HALF) + o, sin + i_angle * (2 * HALF) + o
    b_cos_low, b_cos_high = tl.load(p_cos, mask=m_angle), tl.load(p_cos + HALF, mask=m_angle)
    b_sin_low, b_sin_high = tl.load(p_sin, mask=m_angle), tl.load(p_sin + HALF, mask=m_angle)
    if SCHEDULED:
        wait_for_previous_kernel(OVERLAP)
    if i_page < 0:  # padding
        return

    p_x = qkv + i_row * stride_row + i_head * stride_head
    if i_head >= NUM_Q_HEADS + NUM_KV_HEADS:
        i_v = i_head - NUM_Q_HEADS - NUM_KV_HEADS
        p_v = v_pages + i_page * stride_v_page + i_offset * stride_v_token + i_v * stride_v_head
        tl.store(p_v + o, tl.load(p_x + o, mask=m), mask=m)
        tl.store(p_v + HALF + o, tl.load(p_x + HALF + o, mask=m), mask=m)
        return

    p_y = p_x
    if i_head >= NUM_Q_HEADS:
        i_k = i_head - NUM_Q_HEADS
        p_y = k_pages + i_page * stride_k_page + i_offset * stride_k_token + i_k * stride_k_head
    b_low = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)
    b_high = tl.load(p_x + HALF + o, mask=m, other=0.0).to(tl.float32)
    if q_norm is not None:
        p_norm = q_norm if i_head < NUM_Q_HEADS else k_norm
        b_rms = tl.rsqrt(tl.sum(b_low * b_low + b_high * b_high, 0) / (2 * HALF) + eps)
        b_low *= b_rms * tl.load(p_norm + o, mask=m, other=0.0).to(tl.float32)
        b_high *= b_rms * tl.load(p_norm + HALF + o, mask=m, other=0.0).to(tl.float32)
    b_new_low = b_low * b_cos_low + b_high * b_sin_low
    b_new_high = b_high * b_cos_high + b_low * b_sin_high
    tl.store(p_y + o, b_new_low.to(qkv.dtype.element_ty), mask=m)
    tl.store(p_y + HALF + o, b_new_high.to(qkv.dtype.element_ty), mask=m)


def rope_kv_write(
    qkv: Tensor,  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v; q is changed in place
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [N] int32; negative: the row is padding and left alone
    offset: Tensor,  # [N] int32
    cos: Tensor,  # [N or num_positions, head_dim] fp32, see `rope_tables`
    sin: Tensor,  # [N or num_positions, head_dim] fp32
    *,
    position: Tensor | None = None,  # [N] int32: row n takes this row of cos and sin; None: row n
    q_norm: Tensor | None = None,  # [head_dim]
    k_norm: Tensor | None = None,  # [head_dim]
    eps: float = 0.0,
    scheduled: bool = False,
) -> None:
    """Norms each head of q and k if weights are given (Qwen3), rotates them, and stores k and v.

    Row n goes to token `offset[n]` of page `page[n]`; no two rows may name the same place. The
    arithmetic is fp32.

    scheduled: a promise that `page`, `offset`, `position`, `cos` and `sin` were complete before the
        previous kernel in the stream began. Where kernels overlap, this one then reads them without
        waiting for that kernel to end (`rsd_kernels.overlap`). What `schedule` writes for a pass
        qualifies: `embed`, which never starts early, comes between.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device;
            with RSD_DEBUG_KERNELS=1 also a page, offset or position that is out of range.
    """
    check_arguments(
        qkv, k_pages, v_pages, page, offset, cos, sin,
        position=position, q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip
    rope_kv_write_launch(
        qkv, k_pages, v_pages, page, offset, cos, sin,
        position=position, q_norm=q_norm, k_norm=k_norm, eps=eps, scheduled=scheduled,
    ).run()  # fmt: skip


def rope_kv_write_launch(
    qkv: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page: Tensor,
    offset: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    position: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    scheduled: bool = False,
) -> Launch:
    """The launch of `rope_kv_write`, whose arguments these are."""
    num_rows, num_heads, head_dim = qkv.shape
    num_kv_heads = k_pages.shape[2]
    return Launch(
        kernel=_rope_kv_write_kernel,
        grid=(num_rows, num_heads),
        args={
            "qkv": qkv,
            "k_pages": k_pages,
            "v_pages": v_pages,
            "page": page,
            "offset": offset,
            "cos": cos,
            "sin": sin,
            "position": position,
            "q_norm": q_norm,
            "k_norm": k_norm,
            "eps": eps,
            "stride_row": qkv.stride(0),
            "stride_head": qkv.stride(1),
            "stride_k_page": k_pages.stride(0),
            "stride_k_token": k_pages.stride(1),
            "stride_k_head": k_pages.stride(2),
            "stride_v_page": v_pages.stride(0),
            "stride_v_token": v_pages.stride(1),
            "stride_v_head": v_pages.stride(2),
            "NUM_Q_HEADS": num_heads - 2 * num_kv_heads,
            "NUM_KV_HEADS": num_kv_heads,
            "HALF": head_dim // 2,
            "BLOCK": next_power_of_2(head_dim // 2),
            "SCHEDULED": scheduled,
        },
        # One warp reads a head before it writes it: q changes in place.
        num_warps=1,
        overlap=overlapping(num_rows),
    )


def check_arguments(
    qkv: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page: Tensor,
    offset: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    position: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
) -> None:
    """Raises ValueError as `rope_kv_write` does, whose arguments these are."""
    _check_heads(qkv, k_pages, v_pages)
    _check_rows(qkv, page, offset, position, {"cos": cos, "sin": sin})
    _check_norms(qkv, q_norm, k_norm)
    check_devices(
        qkv=qkv, k_pages=k_pages, v_pages=v_pages, page=page, offset=offset, cos=cos, sin=sin,
        position=position, q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip
    if debugging():
        _check_values(k_pages, page, offset, position, cos)


def _check_heads(qkv: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    if qkv.dim() != 3 or qkv.shape[2] % 2 or not qkv.shape[2]:
        raise ValueError(
            f"qkv has shape {list(qkv.shape)}; it must be [N, heads, an even head_dim]"
        )
    if k_pages.dim() != 4:
        raise ValueError(f"k_pages has shape {list(k_pages.shape)}; it must have 4 dimensions")
    num_kv_heads, head_dim = k_pages.shape[2], qkv.shape[2]
    if qkv.shape[1] <= 2 * num_kv_heads:
        raise ValueError(
            f"qkv has {qkv.shape[1]} heads; it must have more than {2 * num_kv_heads}: those of q, "
            f"then {num_kv_heads} each of k and v, as k_pages has"
        )
    check_shape("k_pages", k_pages, (*k_pages.shape[:3], head_dim))
    check_shape("v_pages", v_pages, tuple(k_pages.shape))
    check_dtype("qkv", qkv, *FLOAT_DTYPES)
    for name, tensor in (("qkv", qkv), ("k_pages", k_pages), ("v_pages", v_pages)):
        check_dtype(name, tensor, qkv.dtype)
        check_last_contiguous(name, tensor)


def _check_rows(
    qkv: Tensor, page: Tensor, offset: Tensor, position: Tensor | None, tables: dict[str, Tensor]
) -> None:
    num_rows, _, head_dim = qkv.shape
    for name, tensor in (("page", page), ("offset", offset), ("position", position)):
        if tensor is not None:
            check_shape(name, tensor, (num_rows,))
            check_dtype(name, tensor, torch.int32)
            check_last_contiguous(name, tensor)
    for name, tensor in tables.items():
        if tensor.dim() != 2 or (position is None and tensor.shape[0] < num_rows):
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have {num_rows} rows")
        check_shape(name, tensor, (tables["cos"].shape[0], head_dim))
        check_dtype(name, tensor, torch.float32)
        check_contiguous(name, tensor)


def _check_norms(qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> None:
    if (q_norm is None) != (k_norm is None):
        raise ValueError("one of q_norm and k_norm is None; give both or neither")
    for name, tensor in (("q_norm", q_norm), ("k_norm", k_norm)):
        if tensor is not None:
            check_shape(name, tensor, (qkv.shape[2],))
            check_dtype(name, tensor, qkv.dtype)
            check_last_contiguous(name, tensor)


def _check_values(
    k_pages: Tensor, page: Tensor, offset: Tensor, position: Tensor | None, cos: Tensor
) -> None:
    """Checks pages, offsets and positions on the host, for debugging: it waits for the device."""
    kept = page >= 0
    limits = [("page", page, k_pages.shape[0]), ("offset", offset, k_pages.shape[1])]
    if position is not None:
        limits.append(("position", position, cos.shape[0]))
    for name, tensor, limit in limits:
        wrong = (kept & ((tensor < 0) | (tensor >= limit))).nonzero()
        if wrong.numel():
            row = int(wrong[0])
            raise ValueError(f"{name}[{row}] is {int(tensor[row])}; allowed: 0 to {limit - 1}")
