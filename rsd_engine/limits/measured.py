"""How fast this device reads its memory: the ceiling of decoding, measured, not published."""

from __future__ import annotations

import time

import torch

_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
_RUNS = 5


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum over a buffer far larger than any cache reads; the best run."""
    data = torch.ones(_BYTES[device.type] // 4, device=device)
    return data.nbytes / min(_seconds(data) for _ in range(_RUNS))


def _seconds(data: torch.Tensor) -> float:
    if data.device.type != "cuda":
        started = time.perf_counter()
        data.sum()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    data.sum()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
