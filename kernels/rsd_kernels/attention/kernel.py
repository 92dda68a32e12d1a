"""Launch paged attention: tiles, splits and scratch follow from the shapes of the pass.

Twin: `rsd_kernels.attention.twin`.
"""

from __future__ import annotations

import math

from torch import Tensor

from rsd_kernels.ahead import ATTENTION_AHEAD_BYTES, ahead_args
from rsd_kernels.attention.attend import attend_kernel
from rsd_kernels.attention.checks import check_arguments, check_values
from rsd_kernels.attention.map import AttentionMap, AttentionScratch
from rsd_kernels.attention.tiles import attention_tiles
from rsd_kernels.launch import Launch, debugging, next_power_of_2, overlapping


def paged_attention(
    q: Tensor,  # [N, num_q_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    key_map: AttentionMap,
    *,
    scale: float,
    out: Tensor,  # [N, num_q_heads, head_dim]
    ahead: Tensor | None = None,
    scheduled: bool = False,
) -> Tensor:
    """softmax(q kᵀ * scale) v of every row over the keys of its sequence up to itself.

    The pages must hold K and V of the new rows already. Query head h reads K/V head
    h // (num_q_heads // num_kv_heads). Sums are in fp32. Rows of `out` that belong to no sequence
    are left alone. Nothing is read on the host, and nothing is allocated when `key_map.scratch` is
    given (`attention_scratch`).

    ahead: a matrix that the pass reads soon; in a decode pass its beginning is brought into the L2
        cache (`rsd_kernels.ahead`).
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
    attention_launch(
        q, k_pages, v_pages, key_map, scale=scale, out=out, ahead=ahead, scheduled=scheduled
    ).run()
    return out


def attention_launch(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    key_map: AttentionMap,
    *,
    scale: float,
    out: Tensor,
    ahead: Tensor | None = None,
    scheduled: bool = False,
) -> Launch:
    """The launch of `paged_attention`, whose arguments these are."""
    num_rows, num_q_heads, head_dim = q.shape
    num_kv_heads = k_pages.shape[2]
    group = num_q_heads // num_kv_heads
    batch = key_map.batch
    tiles = attention_tiles(num_rows, num_q_heads, num_kv_heads, head_dim, q.dtype)
    return Launch(
        kernel=attend_kernel,
        grid=(
            num_rows // (tiles.block_m // group) + batch.num_seqs,
            num_kv_heads,
            tiles.num_splits,
        ),
        args={
            "q": q,
            "k_pages": k_pages,
            "v_pages": v_pages,
            "out": out,
            **_scratch(key_map.scratch, q, num_kv_heads, tiles.num_splits),
            **ahead_args(ahead if tiles.decode else None, ATTENTION_AHEAD_BYTES, q),
            "seq_slot": batch.seq_slot,
            "seq_start": batch.seq_start,
            "seq_kv_len": batch.seq_kv_len,
            "page_table": key_map.page_table,
            "num_seqs": batch.num_seqs,
            "scale_log2": scale * math.log2(math.e),
            "stride_q_row": q.stride(0),
            "stride_q_head": q.stride(1),
            "stride_k_page": k_pages.stride(0),
            "stride_k_token": k_pages.stride(1),
            "stride_k_head": k_pages.stride(2),
            "stride_v_page": v_pages.stride(0),
            "stride_v_token": v_pages.stride(1),
            "stride_v_head": v_pages.stride(2),
            "stride_out_row": out.stride(0),
            "stride_out_head": out.stride(1),
            "stride_table": key_map.page_table.stride(0),
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "TOKENS_PER_PAGE": key_map.tokens_per_page,
            "WINDOW": key_map.sliding_window or 0,
            "MAX_SPLITS": tiles.max_splits,
            "MIN_BLOCKS": tiles.min_blocks,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_D": max(16, next_power_of_2(head_dim)),
            "BLOCK_S": max(32, next_power_of_2(batch.num_seqs)),
            "SCHEDULED": scheduled,
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        overlap=overlapping(num_rows),
    )


def _scratch(
    scratch: AttentionScratch | None, q: Tensor, num_kv_heads: int, num_splits: int
) -> dict[str, Tensor | None]:
    """What the splits find goes there; nothing where one program sees all keys of its rows."""
    if num_splits == 1:
        return dict.fromkeys(("part", "part_max", "part_sum", "arrived"))
    num_rows, num_q_heads, head_dim = q.shape
    parts, counters = num_rows * num_q_heads * num_splits, num_rows * num_kv_heads
    if scratch is None:
        scratch = AttentionScratch.allocate(parts, head_dim, counters, q.device)
    sizes = {"part": parts * head_dim, "part_max": parts, "part_sum": parts, "arrived": counters}
    for name, size in sizes.items():
        if getattr(scratch, name).numel() < size:
            raise ValueError(
                f"key_map.scratch.{name} has {getattr(scratch, name).numel()} elements; "
                f"this pass needs {size}"
            )
    return {name: getattr(scratch, name) for name in sizes}
