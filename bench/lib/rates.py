"""What the machine of a run can do: bytes read and products computed a second, measured there.

Every figure of a benchmark is told as a multiple of what these two rates allow, so they are taken
in the same run.
"""

from __future__ import annotations

import os

import torch

from bench.lib.timing import Calls, alternate_calls
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.measured import read_bandwidth

_GPU_SIZE, _CPU_SIZE = 8192, 1024
_MIB = 2**20


def measure_device(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Device:
    """The measured rates of a device as the limit model takes them.

    Args:
        device: a CPU or a CUDA device.
        dtype: of the products.
        quick: small buffers, for tests: the figures mean little.
    """
    num_bytes = 64 * _MIB if quick else None
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    return Device(
        name=f"{device}, measured",
        bandwidth=read_bandwidth(device, num_bytes, runs=3 if quick else 7),
        flops=matrix_rate(device, dtype, size=256 if quick else size),
        memory_bytes=memory_bytes(device),
    )


def matrix_rate(
    device: torch.device, dtype: torch.dtype, *, size: int = _GPU_SIZE, runs: int = 5
) -> float:
    """Floating-point operations a second of a square product: the best of some runs."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    calls = {"product": Calls(lambda _: torch.mm(a, b, out=out))}
    timings = alternate_calls(calls, device=device, copies=2, runs=runs)
    return 2 * size**3 / min(timings["product"].seconds)


def memory_bytes(device: torch.device) -> float:
    """All memory of a device."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
