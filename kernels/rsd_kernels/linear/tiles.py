"""How a product of up to 16 rows is cut into programs, by its shape alone.

A decode pass reads every weight once, so its products take the time of reading as long as enough
bytes are on their way at any time: those that memory delivers within its latency. Equal shapes have
equal tiles on every device and in every pass, so their sums are added in the same order. Only the
grid depends on the device, and no sum on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsd_kernels.ahead import LINE_BYTES
from rsd_kernels.launch import ceil_div, next_power_of_2

MAX_ROWS = 16
# Of the weight, prefetched by each program before it waits for the previous kernel. The programs
# that are resident at a time then prefetch 5 to 9 MB: what an H100 reads in 2 to 3 us.
PREFETCH_BYTES = 16384
# Of a weight, on their way at any time. An H200 reads 4 MB within the latency of its memory (about
# 0.9 us), an H100 3 MB.
FLIGHT_BYTES = 6 * 2**20
# Programs of a loop over tiles, on a multiprocessor. If it is very large, every tile has its own.
RESIDENT = 3
MAX_REGISTERS = 168  # of a thread, so that a multiprocessor holds three programs of four warps

_MULTIPROCESSORS = 132  # of an H100 and of an H200, for which tiles are chosen
_RESIDENT = 3  # programs that one of them holds at least
_SHARED = 216 * 1024  # bytes of shared memory that they divide, of the 227 KiB of a multiprocessor
_MAX_SHARED = 144 * 1024  # of one, so that an A100 can run it too
_MAX_STAGES = 10
_PLAIN_ROWS = 4  # up to so many rows are multiplied without tensor cores


@dataclass(frozen=True)
class ProjectionTiles:
    """How a product is tiled.

    Attributes:
        rows: of x in a tile, those that do not exist too.
        block_n: outputs of a tile, pairs of them if the product is gated.
        block_k: inputs of a step.
        num_tiles: that cover all outputs.
        resident: programs that a multiprocessor holds at least.
    """

    rows: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    tensor_cores: bool
    num_tiles: int
    resident: int

    @property
    def persistent(self) -> bool:
        """True if programs compute several tiles, one after the other."""
        return self.num_tiles > _MULTIPROCESSORS * self.resident

    @property
    def max_registers(self) -> int:
        """Of a thread, so that a multiprocessor holds so many programs."""
        return MAX_REGISTERS if self.resident > 2 else 255

    def programs(self, multiprocessors: int) -> int:
        """So many that all are resident at once; if persistent, with equally many tiles each.

        Reading limits them all equally, so that programs with equal work end together.
        """
        if not self.persistent:
            return self.num_tiles
        at_once = multiprocessors * (RESIDENT * self.resident // _RESIDENT)
        turns = ceil_div(self.num_tiles, at_once)
        return ceil_div(self.num_tiles, turns)

    def prefetch(self, num_inputs: int, itemsize: int, *, gated: bool) -> int:
        """Addresses in each row of weight that a program prefetches before it waits."""
        rows = self.block_n * (2 if gated else 1)
        most = next_power_of_2(ceil_div(num_inputs * itemsize, LINE_BYTES))
        return min(PREFETCH_BYTES // (rows * LINE_BYTES), most)


def projection_tiles(
    num_rows: int,
    num_outputs: int,  # pairs of outputs if gated
    num_inputs: int,
    *,
    gated: bool,
    normed: bool,
    dtype: torch.dtype,
) -> ProjectionTiles:
    """Tiles with enough bytes on their way, and programs that all fit on an H100 at once."""
    block_k, block_sizes, looped, stages = _block(num_rows, num_inputs, gated, normed, dtype)
    resident = _MULTIPROCESSORS * _RESIDENT
    block_n = next((n for n in block_sizes if n * resident >= num_outputs), looped)
    num_tiles = ceil_div(num_outputs, block_n)
    tensor_cores = num_rows > _PLAIN_ROWS
    rows = MAX_ROWS if tensor_cores else next_power_of_2(max(1, num_rows))

    row_bytes = block_k * dtype.itemsize
    step_bytes = block_n * (2 if gated else 1) * row_bytes
    steps = ceil_div(num_inputs, block_k)
    others = (rows + normed) * row_bytes
    stages = max(stages, stages_in_flight(num_tiles, step_bytes, others, steps, _RESIDENT))
    return ProjectionTiles(rows, block_n, block_k, 4, stages, tensor_cores, num_tiles, _RESIDENT)


def stages_in_flight(
    num_tiles: int, step_bytes: int, other_bytes: int, steps: int, resident: int
) -> int:
    """Of a loop that reads so much of a weight and of all else in a step: enough on their way."""
    programs = min(num_tiles, _MULTIPROCESSORS * resident)
    wanted = ceil_div(FLIGHT_BYTES, programs * step_bytes)
    shared = min(_SHARED // ceil_div(programs, _MULTIPROCESSORS), _MAX_SHARED)
    fit = shared // (step_bytes + other_bytes)
    return min(1 + min(wanted, fit, steps), _MAX_STAGES)


def fill_device(num_tiles: int) -> bool:
    """True if at least four in five multiprocessors get a tile."""
    return 5 * num_tiles >= 4 * _MULTIPROCESSORS


def _block(
    num_rows: int, num_inputs: int, gated: bool, normed: bool, dtype: torch.dtype
) -> tuple[int, tuple[int, ...], int, int]:
    """Sizes that do not spill: block_k, block_n (of a loop over tiles), least number of stages."""
    widest = next_power_of_2(num_inputs)
    wide_dtype = dtype == torch.float32
    if num_rows > _PLAIN_ROWS:
        block_k, stages = (128, 4) if gated or normed else (256, 3)
        if wide_dtype:
            block_k, stages = 64, 2
        norm_first = normed and dtype == torch.float16
        return max(16, min(block_k, widest)), (16,) if norm_first else (8, 16), 16, stages
    rows = next_power_of_2(max(1, num_rows))
    block_k, stages = (256, 6) if rows > 1 else (256 if wide_dtype else 512, 4)
    most = 16 // rows  # registers hold the sums, and weights that were read
    if gated:
        most //= 2
    if wide_dtype and (gated or rows == 2):
        most //= 2
    sizes = tuple(n for n in (4, 8, 16) if n <= max(most, 4))
    return min(block_k, widest), sizes, 4 if gated else sizes[-1], stages
