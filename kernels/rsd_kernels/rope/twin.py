"""Plain-PyTorch twin of head norms, rotary embedding and the store of K and V into pages."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.norm.twin import rms_norm
from rsd_kernels.rope.tables import rope_rows

_WIDE = (torch.float32, torch.float64)


def rope_kv_write(
    qkv: Tensor,  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v; q is changed in place
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [N] int32; rows with a negative page are padding
    offset: Tensor,  # [N] int32
    cos: Tensor,  # [N or num_positions, head_dim] fp32, see `rope_tables`
    sin: Tensor,  # [N or num_positions, head_dim] fp32
    *,
    position: Tensor | None = None,  # [N] int32: row n takes this row of cos and sin; None: row n
    q_norm: Tensor | None = None,  # [head_dim]
    k_norm: Tensor | None = None,  # [head_dim]
    eps: float = 0.0,
) -> None:
    """Norms each head of q and k if weights are given (Qwen3), rotates them, and stores k and v.

    Row n goes to token `offset[n]` of page `page[n]`; no two rows may name the same place. What
    `qkv` holds of k afterwards is undefined.
    """
    num_kv_heads = k_pages.shape[2]
    num_q_heads = qkv.shape[1] - 2 * num_kv_heads
    q_and_k, v = qkv[:, :-num_kv_heads], qkv[:, -num_kv_heads:]
    k = q_and_k[:, num_q_heads:]
    if q_norm is not None and k_norm is not None:
        q = q_and_k[:, :num_q_heads]
        rms_norm(q, q_norm, eps, out=q)
        rms_norm(k, k_norm, eps, out=k)
    if position is not None:
        cos, sin = rope_rows(cos, sin, position)
    rope(q_and_k, cos, sin)
    kv_write(k, v, k_pages, v_pages, page, offset)


def rope(
    x: Tensor,  # [N, num_heads, head_dim], changed in place; heads of q and k may come in one call
    cos: Tensor,  # [N, head_dim] fp32
    sin: Tensor,  # [N, head_dim] fp32, first half negated
) -> None:
    """Rotates every head of row n by the angles of row n, in fp32 (fp64 for fp64 input)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    if x.dtype in _WIDE:
        x.mul_(cos).addcmul_(swapped, sin)
    else:
        x.copy_(x * cos + swapped * sin)  # a narrow type times fp32 is fp32


def kv_write(
    k: Tensor,  # [N, num_kv_heads, head_dim]
    v: Tensor,  # [N, num_kv_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [N] int32; rows with a negative page are not stored
    offset: Tensor,  # [N] int32
) -> None:
    """Writes row n to token `offset[n]` of page `page[n]`. No two rows may name the same place."""
    if page.numel() and int(page.min()) < 0:
        kept = (page >= 0).nonzero().squeeze(1)
        k, v, page, offset = k[kept], v[kept], page[kept], offset[kept]
    k_pages[page, offset] = k
    v_pages[page, offset] = v
