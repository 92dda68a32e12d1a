"""What this machine can do: bytes read and floating-point operations per second, measured.

Benchmarks report their times as multiples of what these two rates allow, and so measure them in the
same run.
"""

from __future__ import annotations

import os

import torch

from bench.lib.timing import Calls, alternate_calls
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.measured import read_bandwidth

_SIZES = {"cuda": 8192, "cpu": 1536}  # of the square product
_MIB = 2**20


def measure_device(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Device:
    """The measured rates of a device, for the roofline.

    Args:
        device: a CPU or a CUDA device.
        dtype: of the products.
        quick: use small buffers, for tests; the figures then mean little.
    """
    num_bytes = 64 * _MIB if quick else None
    return Device(
        name=f"{device}, measured",
        bandwidth=read_bandwidth(device, num_bytes, runs=3 if quick else 7),
        flops=matrix_rate(device, dtype, size=256 if quick else None),
        memory_bytes=memory_bytes(device),
    )


def matrix_rate(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, runs: int = 5
) -> float:
    """Floating-point operations per second of a square matrix product, the best of `runs`."""
    size = size or _SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    calls = {"product": Calls(lambda _: torch.mm(a, b, out=out))}
    timings = alternate_calls(calls, device=device, copies=2, runs=runs)
    return 2 * size**3 / min(timings["product"].seconds)


def memory_bytes(device: torch.device) -> float:
    """The size of a device's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
