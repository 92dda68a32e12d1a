"""How paged attention is cut into programs, and the scratch that this takes.

Everything follows from shapes, so one captured launch serves any lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsd_kernels.launch import ceil_div, next_power_of_2

_PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100
_MAX_SPLITS = 64
_DECODE_ROWS = 16  # passes of up to this many rows use the narrow tile


@dataclass(frozen=True)
class AttentionTiles:
    """How a pass is cut. The same shapes always give the same tiles, so sums keep their order."""

    block_m: int
    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int


def attention_tiles(
    num_rows: int, num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> AttentionTiles:
    """The tiles that ship: narrow for decode rows, wide for chunks, splits to fill the device."""
    group = num_q_heads // num_kv_heads
    decode = num_rows <= _DECODE_ROWS
    wide = dtype == torch.float32  # exact fp32 products run on CUDA cores, from registers
    if decode:
        block_m, block_n, warps, stages = 16, 32, 4, 2
    else:
        block_m, block_n, warps, stages = 64, 32 if head_dim > 128 else 64, 8, 3
    if wide:
        warps, stages = (4, 1) if decode or head_dim <= 64 else (8, 2)
        block_m, block_n = 16, 16
    block_m = max(block_m, next_power_of_2(group))
    tiles = ceil_div(max(1, num_rows), block_m // group) * num_kv_heads
    splits = next_power_of_2(_PROGRAMS // tiles + 1) // 2
    return AttentionTiles(block_m, block_n, min(max(1, splits), _MAX_SPLITS), warps, stages)


def attention_scratch_size(
    max_rows: int, num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Elements (fp32) of a scratch that serves every pass of up to `max_rows` rows."""
    splits = (
        rows * attention_tiles(rows, num_q_heads, num_kv_heads, head_dim, dtype).num_splits
        for rows in range(1, max_rows + 1)
    )
    return max(splits, default=0) * num_q_heads * (head_dim + 2)
