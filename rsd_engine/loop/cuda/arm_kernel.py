"""The kernel that sets the handles of conditional nodes: one thread, a few loads.

Triton kernels cannot set a handle. The loop arms only two handles per tick, and two threads must
not race on one, so a single thread does it all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from cuda.bindings import driver

from rsd_engine.loop.cuda.calls import check, compile_kernel
from rsd_engine.loop.executors.graph_runtime import Arm

_NO_EQUALS = -1

SOURCE = r"""
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    unsigned long long handle, unsigned int value);

// handles[i] becomes *flags[i], or *flags[i] == equals[i] where equals[i] is not negative.
extern "C" __global__ void arm(const unsigned long long* handles, const int* const* flags,
                               const int* equals, int count) {
  for (int i = 0; i < count; ++i) {
    int value = *flags[i];
    if (equals[i] >= 0) value = value == equals[i];
    cudaGraphSetConditional(handles[i], value);
  }
}
"""


class ArmKernel:
    """Launches `arm`, and keeps the tables that its captured launches point to."""

    def __init__(self, device: torch.device) -> None:
        capability = torch.cuda.get_device_capability(device)
        self._module, self._kernel = compile_kernel(SOURCE, "arm", capability)
        self._tables: list[torch.Tensor] = []

    def prepare(self, arms: Sequence[Arm]) -> tuple[int, int, int, int]:
        """Copies the arguments of a launch to the device; not while a stream captures."""
        columns = (
            torch.tensor([arm.handle for arm in arms], dtype=torch.uint64),
            torch.tensor([arm.flag.data_ptr() for arm in arms], dtype=torch.uint64),
            torch.tensor(
                [_NO_EQUALS if arm.equals is None else arm.equals for arm in arms],
                dtype=torch.int32,
            ),
        )
        tables = [column.to(arms[0].flag.device) for column in columns]
        self._tables += tables
        handles, flags, equals = (table.data_ptr() for table in tables)
        return handles, flags, equals, len(arms)

    def launch(self, arguments: tuple[int, int, int, int], stream: int) -> None:
        pointer = ctypes.c_uint64
        kinds = (pointer, pointer, pointer, ctypes.c_int)
        check(
            driver.cuLaunchKernel(self._kernel, 1, 1, 1, 1, 1, 1, 0, stream, (arguments, kinds), 0)
        )

    def close(self) -> None:
        """Unloads the kernel. Destroy the graphs that launch it first."""
        check(driver.cuModuleUnload(self._module))
        self._tables.clear()
