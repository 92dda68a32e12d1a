"""Plain-PyTorch twin of the first half of an attention block: norm, projection, rotation, pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rsd_kernels.grouped.weight import DeviceWeight
from rsd_kernels.linear import twin as linear_twin
from rsd_kernels.rope import twin as rope_twin

Op = Callable[..., Any]


def in_two(norm_linear: Op, rope_kv_write: Op) -> Op:
    """`qkv_projection` made of these two ops, which take the arguments of their twins."""

    def qkv_projection(
        x: Tensor,  # [n, K]
        norm: Tensor | None,  # [K]; None: x is not normed
        eps: float,  # of this norm and of those of heads
        weight: DeviceWeight,  # [heads * head_dim, K] q, k, v
        heads: Tensor,  # [n, heads, head_dim] rows contiguous; q ends up in it
        k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
        v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
        page: Tensor,  # [n] int32; rows with a negative page are padding
        offset: Tensor,  # [n] int32
        cos: Tensor,  # [n or num_positions, head_dim] fp32
        sin: Tensor,  # [n or num_positions, head_dim] fp32
        *,
        position: Tensor | None = None,  # [n] int32
        q_norm: Tensor | None = None,  # [head_dim]
        k_norm: Tensor | None = None,  # [head_dim]
        normed: Tensor,  # [n, K] scratch
    ) -> None:
        """`norm_linear`, then `rope_kv_write`.

        Afterwards `normed`, k and v in `heads`, and q of padding are undefined.
        """
        qkv = heads.view(x.shape[0], heads.shape[1] * heads.shape[2])
        norm_linear(x, norm, eps, weight, normed=normed, out=qkv)
        rope_kv_write(
            heads, k_pages, v_pages, page, offset, cos, sin,
            position=position, q_norm=q_norm, k_norm=k_norm, eps=eps,
        )  # fmt: skip

    return qkv_projection


qkv_projection = in_two(linear_twin.norm_linear, rope_twin.rope_kv_write)
