"""Plain-PyTorch twin of all that happens to new q, k and v before attention."""

from __future__ import annotations

from torch import Tensor

from rsd_kernels.reference.kv_write import kv_write
from rsd_kernels.reference.norm import rms_norm
from rsd_kernels.reference.rope import rope, rope_rows


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

    Row n goes to token `offset[n]` of page `page[n]`; no two rows may name one place. What `qkv`
    holds of k afterwards means nothing.
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
