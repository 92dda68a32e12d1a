"""Compiles the Triton kernels of the decode path into Triton's cache, on all cores.

    python -m bench.precompile [--capability 90]

Otherwise every kernel is compiled at its first launch, one after the other, while the GPU waits for
minutes. This needs no GPU: the compiler only has to know for which one it compiles.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bench.kernels.early_launch import VARIANTS, prefetching
from bench.kernels.resources import OVERLAP_ARCH
from bench.lib import report
from bench.lib.options import command_parser
from rsd_kernels.aot.launches import (
    MODEL_SHAPES,
    ShippedLaunch,
    overlapped_launches,
    shipped_launches,
)
from rsd_kernels.aot.loop_launches import loop_launches

SHAPES = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B")
ROWS = (1, 2, 4, 8, 16, 64, 256)
# Kernels of loop ops are compiled for a number of slots: these are what the parts of `bench.gpu`
# use, besides the 16 of `shipped_launches`.
SLOTS = (1, 2, 4, 8, 64)
_WARP_SIZE = 32


class CompilerOnly:
    """Stands in for Triton's driver: it names the device to compile for, and needs none."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, _WARP_SIZE)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        del device
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda")


def prefetch_variants() -> list[ShippedLaunch]:
    """Decode products that prefetch other amounts of weights, as `bench.kernels` times them."""
    found: list[ShippedLaunch] = []
    for name in SHAPES:
        for num_bytes in VARIANTS.values():
            with prefetching(num_bytes):
                launches = list(overlapped_launches(name, MODEL_SHAPES[name], 1))
            if num_bytes is not None:
                found += [entry for entry in launches if "PREFETCH" in entry.launch.args]
    return found


def loop_ops() -> list[ShippedLaunch]:
    """The loop ops for every number of slots."""
    return [
        ShippedLaunch(op, f"{slots} slots", 0, launch)
        for slots in SLOTS
        for op, launch in loop_launches(slots).items()
    ]


def wanted(capability: int, only: str | None = None) -> list[ShippedLaunch]:
    """All launches of these models and all loop ops; only those of one op if it is named."""
    return [
        entry
        for entry in (*shipped_launches(torch.bfloat16, ROWS), *loop_ops(), *prefetch_variants())
        if (entry.shape in SHAPES or not entry.num_rows)
        and only in (None, entry.op)
        and (capability >= OVERLAP_ARCH or not entry.overlap)
    ]


def compile_share(
    capability: int, index: int, count: int, only: str | None
) -> tuple[int, list[str]]:
    """Compiles every `count`-th launch from `index` on.

    Returns:
        How many were compiled, and why the others failed.
    """
    driver.set_active(CompilerOnly(capability))
    done, failed = 0, []
    for entry in wanted(capability, only)[index::count]:
        launch = entry.launch
        try:
            launch.kernel.run(grid=launch.grid, warmup=True, **launch.all_args, **launch.options)
            done += 1
        except Exception as error:
            failed.append(f"{entry.op}, {entry.shape}: {type(error).__name__}: {error}")
    return done, failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("precompile", __doc__)
    parser.add_argument("--capability", type=int, help="90 for sm_90 (default: of the GPU)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="one op, such as rollback")
    options = parser.parse_args(arguments)
    capability = options.capability
    if capability is None:
        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here; --capability says what to compile for")
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    start, jobs = time.perf_counter(), options.jobs
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        shares = [
            pool.submit(compile_share, capability, i, jobs, options.only) for i in range(jobs)
        ]
        results = [share.result() for share in shares]
    failed = [message for _, messages in results for message in messages]
    for message in failed:
        print(f"failed: {message}")
    report.print_json(
        {
            "bench": "precompile",
            "capability": capability,
            "kernels": sum(done for done, _ in results),
            "failed": len(failed),
            "seconds": time.perf_counter() - start,
        }
    )
    return 1 if failed else 0
