"""What a device can do at most: published figures of GPUs, or measured ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial


@dataclass(frozen=True)
class Device:
    """A device by the two rates that bound a forward pass, and its memory.

    Attributes:
        multiprocessors: that share the programs of a launch; 0: not known.
        starts_early: whether a kernel can start before the previous one has ended (from sm_90 on).

    Raises:
        ValueError: a figure is not a finite number above 0.
    """

    name: str
    bandwidth: float  # bytes per second read from memory
    flops: float  # floating-point operations per second of dense matrix products
    memory_bytes: float
    multiprocessors: int = 0
    starts_early: bool = False

    def __post_init__(self) -> None:
        for field in ("bandwidth", "flops", "memory_bytes"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field} must be a finite number above 0, got {value}")

    def measured(
        self,
        bandwidth: float | None = None,
        flops: float | None = None,
        memory_bytes: float | None = None,
    ) -> Device:
        """The same device with the given figures in place of the published ones."""
        return replace(
            self,
            bandwidth=self.bandwidth if bandwidth is None else bandwidth,
            flops=self.flops if flops is None else flops,
            memory_bytes=self.memory_bytes if memory_bytes is None else memory_bytes,
        )


def _gpu(
    name: str,
    gb_per_second: float,
    tflops: float,
    gigabytes: float,
    multiprocessors: int,
    *,
    starts_early: bool = False,
) -> Device:
    rates = (gb_per_second * 1e9, tflops * 1e12, gigabytes * 1e9)
    return Device(name, *rates, multiprocessors, starts_early)


_early = partial(_gpu, starts_early=True)

# From NVIDIA's datasheets, product briefs and architecture whitepapers. The rate is that of bf16
# products with fp32 sums and without sparsity: datasheets that print only the sparse figure are
# halved. A GB is 10^9 bytes here; the driver usually reports a little more.
_PRESETS = {
    "a10": _gpu("A10", 600, 125, 24, 72),  # A10 datasheet
    "a100-40gb": _gpu("A100 40 GB SXM", 1555, 312, 40, 108),  # A100 datasheet, first edition
    "a100-80gb": _gpu("A100 80 GB SXM", 2039, 312, 80, 108),  # A100 datasheet, 2021
    "a100-80gb-pcie": _gpu("A100 80 GB PCIe", 1935, 312, 80, 108),  # A100 datasheet, 2021
    "b200": _early("B200 SXM", 7700, 2250, 180, 148),  # HGX B200 datasheet: 4,500 sparse
    "h100": _early("H100 SXM", 3350, 989.5, 80, 132),  # H100 datasheet: 1,979 sparse
    "h100-nvl": _early("H100 NVL", 3900, 835.5, 94, 132),  # H100 datasheet: 1,671 sparse
    "h100-pcie": _early("H100 PCIe", 2000, 756.5, 80, 114),  # H100 datasheet: 1,513 sparse
    "h200": _early("H200 SXM", 4800, 989.5, 141, 132),  # H200 datasheet: 1,979 sparse
    "l4": _gpu("L4", 300, 121, 24, 58),  # L4 datasheet: 242 sparse
    "l40s": _gpu("L40S", 864, 362.05, 48, 142),  # L40S datasheet
    "rtx3090": _gpu("GeForce RTX 3090", 936, 71, 24, 82),  # GA102 whitepaper
    "rtx4090": _gpu("GeForce RTX 4090", 1008, 165.2, 24, 128),  # Ada whitepaper
    "rtx5090": _early("GeForce RTX 5090", 1792, 209.5, 32, 170),  # RTX Blackwell whitepaper
    "rtx-a6000": _gpu("RTX A6000", 768, 154.8, 48, 84),  # RTX A6000 datasheet: 309.7 sparse
}
GPU_NAMES = tuple(_PRESETS)


def find_gpu(name: str) -> Device:
    """The published figures of a GPU.

    Raises:
        ValueError: the name is not known; the message lists those that are.
    """
    found = _PRESETS.get(name.strip().lower())
    if found is None:
        raise ValueError(f"gpu must be one of {', '.join(GPU_NAMES)}, got {name!r}")
    return found
