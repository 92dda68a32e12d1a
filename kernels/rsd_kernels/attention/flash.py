"""Attention by the library flash-attn (Dao, 2023) over the same pages, where it is installed.

It takes 16-bit CUDA tensors, and pages whose number of tokens is a multiple of 256; the Triton
kernel serves every other call. Its functions return new tensors, so a pass allocates a little
memory, which is legal in a CUDA graph that keeps its memory pool.

A single row goes to `flash_attn_with_kvcache`, which splits the keys over the device, everything
else to one `flash_attn_varlen_func`. Lengths and page tables stay on the device.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from rsd_kernels.attention.map import AttentionScratch
from rsd_kernels.state.rows import RowBatch

PAGE_MULTIPLE = 256  # tokens of a page, as flash-attn 2 demands

_DTYPES = (torch.bfloat16, torch.float16)
_Ops = TypeVar("_Ops", bound=Any)


@dataclass(frozen=True)
class FlashMap:
    """What every layer of one pass needs to attend, in the library's terms."""

    batch: RowBatch
    block_table: Tensor  # [S, P] int32: pages of sequence s
    key_start: Tensor  # [S + 1] int32: running sum of the sequences' keys
    max_keys: int
    sliding_window: int | None  # tokens a row sees, itself included


def installed() -> str | None:
    """The library's version, or None."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        return importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the library does not serve a model of this device and dtype; None if it does."""
    if installed() is None:
        return "flash-attn is not installed"
    if device.type != "cuda":
        return f"flash-attn runs on CUDA devices, not on {device}"
    if dtype not in _DTYPES:
        return f"flash-attn takes bfloat16 and float16, not {dtype}"
    return None


def over(ops: _Ops) -> _Ops:
    """`ops` (a `model_ops.ModelOps`), with the library's attention where the pages allow it."""

    def attention_map(
        batch: RowBatch,
        page_table: Tensor,
        tokens_per_page: int,
        sliding_window: int | None,
        dtype: torch.dtype,
        scratch: AttentionScratch | None,
    ) -> Any:
        if tokens_per_page % PAGE_MULTIPLE:
            args = (batch, page_table, tokens_per_page, sliding_window, dtype, scratch)
            return ops.attention_map(*args)
        return flash_map(batch, page_table, tokens_per_page, sliding_window)

    def attend(q: Tensor, k_pages: Tensor, v_pages: Tensor, key_map: Any, **rest: Any) -> Any:
        kernel = paged_attention if isinstance(key_map, FlashMap) else ops.paged_attention
        return kernel(q, k_pages, v_pages, key_map, **rest)

    return replace(
        ops,
        backend=f"flash-attn {installed()}, else {ops.backend}",
        attention_map=attention_map,
        paged_attention=attend,
        page_multiple=PAGE_MULTIPLE,
    )


def flash_map(
    batch: RowBatch,
    page_table: Tensor,  # [B, P] int32
    tokens_per_page: int,
    sliding_window: int | None,
) -> FlashMap:
    """Computed once a pass, on the device."""
    return FlashMap(
        batch=batch,
        block_table=page_table.index_select(0, batch.seq_slot),
        key_start=functional.pad(batch.seq_kv_len.cumsum(0, dtype=torch.int32), (1, 0)),
        max_keys=page_table.shape[1] * tokens_per_page,
        sliding_window=sliding_window,
    )


def paged_attention(
    q: Tensor,  # [N, num_q_heads, head_dim] bf16 or fp16
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    key_map: FlashMap,
    *,
    scale: float,
    out: Tensor,  # [N, num_q_heads, head_dim]
    ahead: Tensor | None = None,
) -> Tensor:
    """As `rsd_kernels.attention.twin.paged_attention`. Returns `out`."""
    del ahead
    library = importlib.import_module("flash_attn")
    batch = key_map.batch
    left = -1 if key_map.sliding_window is None else key_map.sliding_window - 1
    shared = {"softmax_scale": scale, "causal": True, "window_size": (left, 0 if left >= 0 else -1)}
    if batch.num_rows == 1 and batch.num_seqs == 1:
        found = library.flash_attn_with_kvcache(
            q[None], k_pages, v_pages,
            cache_seqlens=batch.seq_kv_len, block_table=key_map.block_table, **shared,
        )[0]  # fmt: skip
    else:
        found = library.flash_attn_varlen_func(
            q, k_pages, v_pages,
            cu_seqlens_q=batch.seq_start, cu_seqlens_k=key_map.key_start,
            max_seqlen_q=batch.num_rows, max_seqlen_k=key_map.max_keys,
            block_table=key_map.block_table, **shared,
        )  # fmt: skip
    # Rows at the end that belong to no sequence are padding; the library may write anything there.
    row = torch.arange(batch.num_rows, dtype=torch.int32, device=q.device)
    real = (row < batch.seq_start[-1])[:, None, None]
    return out.copy_(torch.where(real, found, out))
