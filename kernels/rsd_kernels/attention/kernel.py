"""Launch paged attention: tiles, splits and scratch follow from the shapes of the pass.

Twin: `rsd_kernels.attention.twin`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.attention.attend import attend_kernel, combine_kernel
from rsd_kernels.attention.checks import check_arguments, check_values
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.attention.tiles import AttentionTiles, attention_tiles
from rsd_kernels.launch import Launch, debugging, next_power_of_2, overlapping


def paged_attention(
    q: Tensor,  # [N, num_q_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    key_map: AttentionMap,
    *,
    scale: float,
    out: Tensor,  # [N, num_q_heads, head_dim]
    scheduled: bool = False,
) -> Tensor:
    """softmax(q kᵀ * scale) v of every row over the keys of its sequence up to itself.

    The pages must hold K and V of the new rows already. Query head h reads K/V head
    h // (num_q_heads // num_kv_heads). Sums are in fp32. Rows of `out` that belong to no sequence
    are left alone. Nothing is read on the host, and nothing is allocated when `key_map.scratch` is
    given (`attention_scratch_size`).

    scheduled: a promise that the tensors of `key_map` were complete before the previous kernel in
        the stream began. Where kernels overlap, this one then reads them without waiting for that
        kernel to end (`rsd_kernels.overlap`). What `schedule` writes for a pass qualifies: `embed`,
        which never starts early, comes between.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device;
            with RSD_DEBUG_KERNELS=1 also a page or a length that is out of range.
    """
    check_arguments(q, k_pages, v_pages, key_map, out=out)
    if debugging():
        check_values(k_pages, key_map)
    for launch in attention_launches(
        q, k_pages, v_pages, key_map, scale=scale, out=out, scheduled=scheduled
    ):
        launch.run()
    return out


def attention_launches(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    key_map: AttentionMap,
    *,
    scale: float,
    out: Tensor,
    scheduled: bool = False,
) -> list[Launch]:
    """The launches of `paged_attention`, whose arguments these are."""
    num_rows, num_q_heads, head_dim = q.shape
    tiles = attention_tiles(num_rows, num_q_heads, k_pages.shape[2], head_dim, q.dtype)
    shared = {
        "out": out,
        **_scratch(key_map.scratch, q, tiles.num_splits),
        "seq_start": key_map.batch.seq_start,
        "num_seqs": key_map.batch.num_seqs,
        "stride_out_row": out.stride(0),
        "stride_out_head": out.stride(1),
        "HEAD_DIM": head_dim,
        "NUM_SPLITS": tiles.num_splits,
        "BLOCK_D": max(16, next_power_of_2(head_dim)),
        "SCHEDULED": scheduled,
    }
    attend = _attend_launch(q, k_pages, v_pages, key_map, scale, tiles, shared)
    if tiles.num_splits == 1:
        return [attend]
    combine = Launch(
        kernel=combine_kernel,
        grid=(num_rows, num_q_heads),
        args=shared,
        num_warps=4,
        overlap=overlapping(num_rows),
    )
    return [attend, combine]


def _attend_launch(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    key_map: AttentionMap,
    scale: float,
    tiles: AttentionTiles,
    shared: dict[str, Any],  # arguments that the second launch takes too
) -> Launch:
    num_rows, num_q_heads, _ = q.shape
    num_kv_heads = k_pages.shape[2]
    group = num_q_heads // num_kv_heads
    batch = key_map.batch
    return Launch(
        kernel=attend_kernel,
        grid=(
            num_rows // (tiles.block_m // group) + batch.num_seqs,
            num_kv_heads,
            tiles.num_splits,
        ),
        args={
            **shared,
            "q": q,
            "k_pages": k_pages,
            "v_pages": v_pages,
            "seq_slot": batch.seq_slot,
            "seq_kv_len": batch.seq_kv_len,
            "page_table": key_map.page_table,
            "scale_log2": scale * math.log2(math.e),
            "stride_q_row": q.stride(0),
            "stride_q_head": q.stride(1),
            "stride_k_page": k_pages.stride(0),
            "stride_k_token": k_pages.stride(1),
            "stride_k_head": k_pages.stride(2),
            "stride_v_page": v_pages.stride(0),
            "stride_v_token": v_pages.stride(1),
            "stride_v_head": v_pages.stride(2),
            "stride_table": key_map.page_table.stride(0),
            "GROUP": group,
            "TOKENS_PER_PAGE": key_map.tokens_per_page,
            "WINDOW": key_map.sliding_window or 0,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_S": max(16, next_power_of_2(batch.num_seqs)),
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        overlap=overlapping(num_rows),
    )


def _scratch(scratch: Tensor | None, q: Tensor, num_splits: int) -> dict[str, Tensor]:
    """Room for what the splits find: sums of values, largest scores, sums of weights."""
    num_rows, num_q_heads, head_dim = q.shape
    parts = num_rows * num_q_heads * num_splits if num_splits > 1 else 0
    size = parts * (head_dim + 2)
    if scratch is None:
        scratch = torch.empty(size, dtype=torch.float32, device=q.device)
    elif scratch.numel() < size:
        raise ValueError(f"key_map.scratch has {scratch.numel()} elements; this pass needs {size}")
    part, part_max, part_sum = scratch[:size].split((parts * head_dim, parts, parts))
    return {"part": part, "part_max": part_max, "part_sum": part_sum}
