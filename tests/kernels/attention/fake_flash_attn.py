"""Stands in for the library flash-attn: its functions' arguments and checks, sums in PyTorch.

Signatures, and what they ask of their arguments, are those of flash-attn 2.8. Arithmetic is in
float64, rounded once; rows of no sequence, and memory past the keys, are NaN as they may be there.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def fake_library(dtypes: tuple[torch.dtype, ...] = HALF, head_multiple: int = 8) -> ModuleType:
    """A module `flash_attn`; `calls` lists the functions called.

    The library takes 16 bits and heads of a multiple of 8; tests of tiny models need more.
    """
    limits = (dtypes, head_multiple)
    module = ModuleType("flash_attn")
    module.calls = []  # type: ignore[attr-defined]

    def flash_attn_with_kvcache(
        q: Tensor,  # [S, n, H, D]
        k_cache: Tensor,  # [pages, page_size, Hk, D]
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        cache_seqlens: int | Tensor | None = None,  # [S]
        cache_batch_idx: Tensor | None = None,
        cache_leftpad: Tensor | None = None,
        block_table: Tensor | None = None,  # [S, P]
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        rotary_interleaved: bool = True,
        alibi_slopes: Tensor | None = None,
        num_splits: int = 0,
        return_softmax_lse: bool = False,
    ) -> Tensor:
        module.calls.append("with_kvcache")
        assert isinstance(cache_seqlens, Tensor)
        assert cache_seqlens.dtype == torch.int32 and cache_seqlens.shape == q.shape[:1]
        assert block_table is not None
        _check(q, k_cache, v_cache, block_table, *limits)
        rows = [_one(q[s], k_cache, v_cache, block_table[s], int(cache_seqlens[s]),
                     softmax_scale, causal, window_size) for s in range(q.shape[0])]  # fmt: skip
        return torch.stack(rows)

    def flash_attn_varlen_func(
        q: Tensor,  # [N, H, D]
        k: Tensor,  # [pages, page_size, Hk, D]
        v: Tensor,
        cu_seqlens_q: Tensor,  # [S + 1]
        cu_seqlens_k: Tensor,  # [S + 1]
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Tensor | None = None,  # [S, P]
    ) -> Tensor:
        module.calls.append("varlen")
        for cu in (cu_seqlens_q, cu_seqlens_k):
            assert cu.dtype == torch.int32 and cu.is_contiguous()
        assert cu_seqlens_q.shape == cu_seqlens_k.shape
        assert block_table is not None
        _check(q, k, v, block_table, *limits)
        out = torch.full_like(q, torch.nan)
        for s in range(cu_seqlens_q.shape[0] - 1):
            first, end = int(cu_seqlens_q[s]), int(cu_seqlens_q[s + 1])
            keys = int(cu_seqlens_k[s + 1] - cu_seqlens_k[s])
            assert end - first <= max_seqlen_q and keys <= max_seqlen_k
            if end > first:
                out[first:end] = _one(
                    q[first:end], k, v, block_table[s], keys, softmax_scale, causal, window_size
                )
        return out

    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_table: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
    head_multiple: int,
) -> None:
    assert q.dtype in dtypes and k.dtype == q.dtype and v.dtype == q.dtype
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert q.shape[-1] % head_multiple == 0 and q.shape[-1] <= 256
    assert q.shape[-2] % k.shape[2] == 0
    assert block_table is not None
    assert block_table.dtype == torch.int32 and block_table.stride(-1) == 1


def _one(
    q: Tensor,  # [n, H, D]
    k_pages: Tensor,
    v_pages: Tensor,
    table: Tensor,  # [P]
    num_keys: int,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
) -> Tensor:
    """One sequence; its last row stands at its last key."""
    size, share = k_pages.shape[1], q.shape[1] // k_pages.shape[2]
    key = torch.arange(num_keys)
    page = table[key // size].long()
    k, v = (t[page, key % size].double().repeat_interleave(share, 1) for t in (k_pages, v_pages))
    row = torch.arange(num_keys - q.shape[0], num_keys)[:, None]
    left, right = window
    seen = key <= row if causal else torch.ones_like(key <= row)
    if left >= 0:
        seen &= key >= row - left
    if right >= 0:
        seen &= key <= row + right
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    score = torch.einsum("nhd,lhd->hnl", q.double(), k) * factor
    weight = score.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hnl,lhd->nhd", weight, v).to(q.dtype)
