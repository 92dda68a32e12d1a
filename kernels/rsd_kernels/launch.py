"""What the Triton launchers share. Nothing here imports Triton: it loads on any machine.

A file with a Triton kernel imports Triton at its top, so it is imported only where the kernel runs:
on CUDA tensors, in the interpreter (`TRITON_INTERPRET=1`, read when a kernel is decorated) or to be
compiled ahead of time.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OVERLAP_ROWS = 16


@functools.cache
def available() -> bool:
    """True if Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True if kernels run on CPU tensors, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def debugging() -> bool:
    """True if launchers also check the values of lengths and page tables (RSD_DEBUG_KERNELS=1)."""
    return os.environ.get("RSD_DEBUG_KERNELS", "0") == "1"


def overlapping(num_rows: int) -> bool:
    """True if the kernels of a pass of `num_rows` rows shall overlap, see `rsd_kernels.overlap`.

    They do with RSD_OVERLAP_KERNELS=1, from sm_90 on, in passes of at most `OVERLAP_ROWS` rows: in
    wider ones plain products stand between them, which neither start early nor let others do so.
    Off by default until a GPU has shown that it is right, inside conditional nodes of a graph too,
    and faster: `python -m bench.kernels` and `python -m bench.overlap` tell both.
    """
    return (
        os.environ.get("RSD_OVERLAP_KERNELS", "0") == "1"
        and num_rows <= OVERLAP_ROWS
        and can_overlap()
    )


def can_overlap() -> bool:
    """True if the current device can start a kernel early, and kernels are not interpreted."""
    if interpreting() or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (9, 0)


def runs_on(tensor: Tensor) -> bool:
    """True if the Triton kernel of an op takes this tensor, false if its twin must."""
    return tensor.is_cuda and available()


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


@dataclass(frozen=True)
class Launch:
    """One launch, complete before it happens, so that it can also be compiled ahead of time.

    Launchers make it in a function of its own, which works on tensors without memory (device
    "meta") as well: what is compiled ahead of time is then what ships.
    """

    kernel: Any  # a @triton.jit function
    grid: tuple[int, ...]
    args: dict[str, Any]  # every argument by name, constexprs too, but for OVERLAP
    num_warps: int = 4
    num_stages: int = 3
    overlap: bool = False  # it may start while the kernel before it runs: `rsd_kernels.overlap`

    def __post_init__(self) -> None:
        if self.overlap and not self.has_wait:
            raise ValueError(f"{self.kernel.__name__} has no OVERLAP: it waits for no kernel")

    @property
    def has_wait(self) -> bool:
        """True if the kernel knows how to wait for the one before it."""
        return "OVERLAP" in self.kernel.arg_names

    @property
    def all_args(self) -> dict[str, Any]:
        """Every argument of the kernel by name."""
        return self.args | {"OVERLAP": self.overlap} if self.has_wait else self.args

    @property
    def options(self) -> dict[str, Any]:
        """What Triton is told beside the arguments."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options | {"launch_pdl": True} if self.overlap else options

    def run(self) -> None:
        """Launches on the current stream of the current device; an empty grid does nothing."""
        if 0 not in self.grid:
            self.kernel[self.grid](**self.all_args, **self.options)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype) for dtype in allowed)
        raise ValueError(f"{name} has dtype {tensor.dtype}; allowed: {names}")


def check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; it must be contiguous")


def check_last_contiguous(name: str, tensor: Tensor) -> None:
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{name} has strides {tuple(tensor.stride())}; its last dimension must be contiguous"
        )


def check_devices(**tensors: Tensor | None) -> None:
    """All on the current CUDA device, or on the CPU where the interpreter runs the kernels."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (first, leader), *others = given.items()
    if leader.device.type != "cuda" and not (leader.device.type == "cpu" and interpreting()):
        raise ValueError(
            f"{first} is on {leader.device}; Triton kernels run on CUDA devices, and on the CPU "
            "where TRITON_INTERPRET=1 is set (the twins in rsd_kernels.reference run on any)"
        )
    if leader.is_cuda and leader.device.index != torch.cuda.current_device():
        raise ValueError(
            f"{first} is on {leader.device}; Triton launches on the current device, which is "
            f"cuda:{torch.cuda.current_device()} (torch.cuda.set_device changes it)"
        )
    for name, tensor in others:
        if tensor.device != leader.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {leader.device}")
