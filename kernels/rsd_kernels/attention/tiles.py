"""How paged attention is cut into programs, and the scratch that this takes.

Everything follows from shapes, so one captured launch serves any lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsd_kernels.attention.map import AttentionScratch
from rsd_kernels.launch import ceil_div, next_power_of_2

_PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100
_DECODE_ROWS = 16  # passes of up to this many rows use the narrow tile
# One program combines the splits of a tile, so it costs more time to combine more of them than
# smaller ones save: `docs/kernels.md` has the figures.
_MAX_SPLITS, _MAX_WIDE_SPLITS = 32, 8  # of a narrow tile, of a wide one
_SPLIT_KEYS = 64  # a split has at least so many


@dataclass(frozen=True)
class AttentionTiles:
    """How a pass is cut. The same shapes always give the same tiles, so sums keep their order."""

    block_m: int
    block_n: int
    num_splits: int
    max_splits: int  # of any pass with this tile
    num_warps: int
    num_stages: int
    decode: bool  # few rows

    @property
    def min_blocks(self) -> int:
        """Blocks of keys of a split."""
        return ceil_div(_SPLIT_KEYS, self.block_n)


def attention_tiles(
    num_rows: int, num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> AttentionTiles:
    """The tiles that ship: narrow for decode rows, wide for chunks, splits to fill the device."""
    group = num_q_heads // num_kv_heads
    decode = num_rows <= _DECODE_ROWS
    wide = dtype == torch.float32  # exact fp32 products run on CUDA cores, from registers
    if decode:
        # Stages: with three steps on their way most splits are.
        block_m, block_n, warps, stages = 16, 32, 4 if head_dim <= 128 else 8, 4
    else:
        block_m, block_n, warps, stages = 64, 32 if head_dim > 128 else 64, 8, 3
    if wide:
        warps, stages = (4, 1) if decode or head_dim <= 64 else (8, 2)
        block_m, block_n = 16, 16
    block_m = max(block_m, next_power_of_2(group))
    tiles = ceil_div(max(1, num_rows), block_m // group) * num_kv_heads
    splits = max(1, next_power_of_2(_PROGRAMS // tiles + 1) // 2)
    most = _MAX_SPLITS if decode else _MAX_WIDE_SPLITS
    return AttentionTiles(block_m, block_n, min(splits, most), most, warps, stages, decode)


def attention_scratch(
    max_rows: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionScratch:
    """A scratch that serves every pass of up to `max_rows` rows."""
    num_parts = num_counters = 0
    for rows in range(1, max_rows + 1):
        tiles = attention_tiles(rows, num_q_heads, num_kv_heads, head_dim, dtype)
        if tiles.num_splits > 1:
            num_parts = max(num_parts, rows * num_q_heads * tiles.num_splits)
            num_counters = rows * num_kv_heads
    return AttentionScratch.allocate(num_parts, head_dim, num_counters, device)
