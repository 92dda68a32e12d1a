"""The device of a plan: a GPU by its name, or the CPU of this machine."""

from __future__ import annotations

import torch

from rsd_engine.cli.errors import UsageError
from rsd_engine.memory.available import host_available_bytes
from rsd_engine.roofline.gpus import Device, find_gpu
from rsd_engine.roofline.measured import product_rate, read_bandwidth

_LEAST_RATE, _MOST_RATE = 1e-3, 1e9  # GB/s and TFLOP/s of any device
_CPU = torch.device("cpu")


def find_device(
    gpu: str | None,
    bandwidth: float | None = None,  # GB/s
    tflops: float | None = None,
    memory_bytes: int | None = None,
) -> Device:
    """A GPU by its name, or this CPU if that is None, with the user's figures in place of its own.

    Raises:
        UsageError: there is no such GPU, or a figure is none of any device.
    """
    for name, rate in (("bandwidth", bandwidth), ("tflops", tflops)):
        if rate is not None and (0 < rate < _LEAST_RATE or rate > _MOST_RATE):
            raise UsageError(f"{name} must be in [{_LEAST_RATE:g}, {_MOST_RATE:g}], got {rate:g}")
    per_second = None if bandwidth is None else bandwidth * 1e9
    flops = None if tflops is None else tflops * 1e12
    try:
        if gpu is None:
            return _this_cpu(per_second, flops, memory_bytes)
        return find_gpu(gpu).measured(per_second, flops, memory_bytes)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _this_cpu(bandwidth: float | None, flops: float | None, memory_bytes: int | None) -> Device:
    """Measures what is not given, with the threads that PyTorch uses."""
    threads = torch.get_num_threads()
    counted = f", {threads} thread{'' if threads == 1 else 's'}"
    return Device(
        name="this CPU" + (counted if bandwidth is None or flops is None else ""),
        bandwidth=read_bandwidth(_CPU) if bandwidth is None else bandwidth,
        flops=product_rate(_CPU) if flops is None else flops,
        memory_bytes=host_available_bytes() if memory_bytes is None else memory_bytes,
    )
