"""How fast this device reads its memory and computes products, measured: they bound a pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.linear.weight import LinearWeight

_ROWS = 32
_BYTES = {"cpu": 2**29, "cuda": 2**31}


def read_bandwidth(device: torch.device, num_bytes: int | None = None, runs: int = 5) -> float:
    """Bytes per second that PyTorch's quickest reduction reads, on a GPU or with all its threads.

    Args:
        device: a CPU or a CUDA device.
        num_bytes: of the buffer; by default far more than any cache holds.
        runs: of each reduction; the best one counts.
    """
    data = torch.ones((num_bytes or _BYTES[device.type]) // 4, device=device)
    reductions: tuple[Callable[[], Tensor], ...] = (data.sum, data.amax)
    clock = _seconds_on_gpu if device.type == "cuda" else _seconds
    return data.nbytes / min(clock(read) for read in reductions for _ in range(runs))


def product_rate(device: torch.device, width: int = 1024, seconds: float = 0.5) -> float:
    """Operations per second of the quickest product of fp32 matrices.

    That is PyTorch's, or on a CPU that of the CPU library, which multiplies few rows.

    Args:
        device: a CPU or a CUDA device.
        width: rows and columns of each matrix; PyTorch's product has as many rows.
        seconds: in which each product is repeated; the best time counts.
    """
    one, other = torch.ones(2, width, width, device=device)
    clock = _seconds_on_gpu if device.type == "cuda" else _seconds
    operations = 2 * width * width
    rates = []
    if device.type == "cpu":
        rows, weight = one[:_ROWS], LinearWeight(other)
        best = _best(partial(clock, lambda: cpu_ops.linear(rows, weight)), seconds)
        rates.append(operations * len(rows) / best)
    rates.append(operations * width / _best(partial(clock, lambda: one @ other), seconds))
    return max(rates)


def _best(run: Callable[[], float], seconds: float) -> float:
    """The shortest time that `run` returns until so many seconds are over."""
    best, end = run(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, run())
    return best


def _seconds(read: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


def _seconds_on_gpu(read: Callable[[], Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    read()  # keeps the device busy until the next one is launched, so no gap is timed
    start.record()
    read()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
