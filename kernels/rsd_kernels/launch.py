"""How a Triton kernel is launched, and checks of its arguments. Loads without Triton.

Files with Triton kernels import Triton at their top, so they are imported only where kernels run:
on CUDA tensors, in the interpreter (`TRITON_INTERPRET=1`, read when a kernel is decorated), or when
they are compiled ahead of time.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_REGISTERS = 65536  # of a multiprocessor
FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OVERLAP_ROWS = 16

_recorded: ContextVar[list[Launch] | None] = ContextVar("launches that are recorded", default=None)


@functools.cache
def available() -> bool:
    """True if Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True if kernels run on CPU tensors, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def debugging() -> bool:
    """True if launchers also check the values of lengths and page tables (RSD_DEBUG_KERNELS=1).

    Not where launches are recorded: the tensors may have no values.
    """
    return os.environ.get("RSD_DEBUG_KERNELS", "0") == "1" and _recorded.get() is None


def overlapping(num_rows: int) -> bool:
    """True if the kernels of a pass of `num_rows` rows overlap; see `rsd_kernels.overlap`.

    They do with RSD_OVERLAP_KERNELS=1, from sm_90 on, in passes of at most `OVERLAP_ROWS` rows.
    Wider passes use library products, which neither start early nor let the next kernel do so.
    Off by default until a GPU has shown that it is right, also inside conditional nodes of a graph,
    and faster: `python -m bench.kernels` and `python -m bench.overlap` measure both.
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


def multiprocessors() -> int:
    """Of the current device; where there is none, those of an H100 or H200."""
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties().multi_processor_count


def runs_on(tensor: Tensor) -> bool:
    """True if an op on this tensor runs its Triton kernel, false if it runs its twin.

    On device "meta" kernels can only be recorded, see `recorded_launches`.
    """
    return (tensor.is_cuda or tensor.is_meta) and available()


def next_power_of_2(number: int) -> int:
    """The least power of two >= `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


@dataclass(frozen=True)
class Launch:
    """A launch as data: it can be run, or compiled ahead of time.

    Every launcher builds it in a function of its own (`..._launch`), which also takes tensors
    without memory (device "meta"), so what is compiled ahead of time is what ships.
    """

    kernel: Any  # a @triton.jit function
    grid: tuple[int, ...]
    args: dict[str, Any]  # every argument by name, constexprs too, except OVERLAP
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None  # of a thread
    overlap: bool = False  # may start while the previous kernel runs: see `rsd_kernels.overlap`

    def __post_init__(self) -> None:
        if self.overlap and not self.has_wait:
            name = self.kernel.__name__
            raise ValueError(f"{name} has no argument OVERLAP; launch it with overlap=False")

    @property
    def has_wait(self) -> bool:
        """True if the kernel can wait for the previous one."""
        return "OVERLAP" in self.kernel.arg_names

    @property
    def all_args(self) -> dict[str, Any]:
        """Every argument of the kernel by name."""
        return self.args | {"OVERLAP": self.overlap} if self.has_wait else self.args

    @property
    def options(self) -> dict[str, Any]:
        """Triton's launch options."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options | {"launch_pdl": True} if self.overlap else options

    def run(self) -> None:
        """Launches on the current stream of the current device; an empty grid does nothing."""
        if 0 in self.grid:
            return
        recorded = _recorded.get()
        if recorded is None:
            self.kernel[self.grid](**self.all_args, **self.options)
        else:
            recorded.append(self)


def all_registers(num_warps: int) -> int:
    """`max_registers` where programs are few: each has a multiprocessor to itself.

    Unasked, the assembler spills registers of a long kernel to leave room for a second program.
    """
    return min(255, _REGISTERS // (32 * num_warps))


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Launches within are listed in order and do not run; the tensors may be on device "meta"."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


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
    """All tensors must be on the current CUDA device, or on the CPU under the interpreter.

    Where launches are recorded, they may have no memory.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (first, leader), *others = given.items()
    kind = leader.device.type
    can_run = kind == "cuda" or (kind == "cpu" and interpreting())
    if not can_run and (kind != "meta" or _recorded.get() is None):
        raise ValueError(
            f"{first} is on {leader.device}; Triton kernels take CUDA tensors, and CPU tensors if "
            "TRITON_INTERPRET=1 is set. The op's twin (twin.py in its folder) runs on any device"
        )
    if leader.is_cuda and leader.device.index != torch.cuda.current_device():
        raise ValueError(
            f"{first} is on {leader.device}; it must be on the current device, "
            f"cuda:{torch.cuda.current_device()}: call torch.cuda.set_device first"
        )
    for name, tensor in others:
        if tensor.device != leader.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {leader.device}")
