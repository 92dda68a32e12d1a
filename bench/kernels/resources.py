"""Registers, shared memory and spills of every Triton kernel, compiled without a GPU.

    python -m bench.kernel_resources

Everything that the engine launches for the models below is compiled as the launchers launch it. It
is a failure if a kernel of the decode path spills registers to memory, or if one does not compile.
"early" is the variant of a kernel that starts before the previous one has ended, from sm_90 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import command_parser
from rsd_kernels.aot import compile as aot
from rsd_kernels.aot.launches import MODEL_SHAPES, ROWS, ShippedLaunch, shipped_launches

ARCHS = (80, 90, 100)
OVERLAP_ARCH = 90  # the first that can start a kernel early
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Outcome:
    """One launch compiled for one architecture."""

    shipped: ShippedLaunch
    arch: int
    usage: aot.Usage | None
    error: str = ""


def compile_one(shipped: ShippedLaunch, arch: int) -> Outcome:
    try:
        usage = aot.usage(aot.compile_launch(shipped.launch, arch))
    except Exception as error:
        return Outcome(shipped, arch, None, f"{type(error).__name__}: {error}")
    return Outcome(shipped, arch, usage)


def table(outcomes: Sequence[Outcome], archs: Sequence[int]) -> str:
    """A line per launch: for each architecture registers, KiB of shared memory, bytes spilled.

    Lines that differ only in the number of rows are merged.
    """
    lines: dict[tuple[str, ...], list[str]] = {}
    for shipped, cells in _by_launch(outcomes):
        key = (shipped.op, shipped.shape, *(cells.get(arch, "-") for arch in archs))
        lines.setdefault(key, []).append(str(shipped.num_rows) if shipped.num_rows else "any")
    rows = [[op, shape, ",".join(rows), *cells] for (op, shape, *cells), rows in lines.items()]
    return report.format_table(["op", "shape", "rows", *(f"sm_{arch}" for arch in archs)], rows)


def _by_launch(outcomes: Sequence[Outcome]) -> list[tuple[ShippedLaunch, dict[int, str]]]:
    found: dict[int, tuple[ShippedLaunch, dict[int, str]]] = {}
    for outcome in outcomes:
        cells = found.setdefault(id(outcome.shipped), (outcome.shipped, {}))[1]
        usage = outcome.usage
        cells[outcome.arch] = (
            "failed"
            if usage is None
            else f"{usage.registers} / {usage.shared_bytes / 1024:.1f} / {usage.stack_bytes}"
        )
    return list(found.values())


def summary(outcomes: Sequence[Outcome], archs: Sequence[int]) -> dict[str, Any]:
    usages = [(outcome.shipped, outcome.usage) for outcome in outcomes if outcome.usage]
    return {
        "kernels": len({outcome.shipped.launch.kernel.__name__ for outcome in outcomes}),
        "shapes": len({outcome.shipped.shape for outcome in outcomes}),
        "archs": [f"sm_{arch}" for arch in archs],
        "compiled": len(usages),
        "failed": sum(outcome.usage is None for outcome in outcomes),
        "decode_spills": sum(usage.stack_bytes for shipped, usage in usages if shipped.decode),
        "other_spills": sum(usage.stack_bytes for shipped, usage in usages if not shipped.decode),
        "most_registers": max((usage.registers for _, usage in usages), default=0),
        "most_shared_bytes": max((usage.shared_bytes for _, usage in usages), default=0),
        "shape_names": sorted({outcome.shipped.shape for outcome in outcomes}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("kernel_resources", __doc__)
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, help="80 for sm_80, ...")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of a pass")
    parser.add_argument("--shapes", nargs="+", choices=sorted(MODEL_SHAPES), help="models")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    options = parser.parse_args(arguments)
    wanted = [
        shipped
        for shipped in shipped_launches(DTYPES[options.dtype], tuple(options.rows))
        if options.shapes is None or shipped.shape in options.shapes or not shipped.num_rows
    ]
    outcomes = [
        compile_one(shipped, arch)
        for shipped in wanted
        for arch in options.archs
        if arch >= OVERLAP_ARCH or not shipped.overlap
    ]
    print("registers a thread / KiB of shared memory a program / bytes spilled a thread\n")
    print(table(outcomes, options.archs))
    for outcome in outcomes:
        if outcome.error:
            where = f"{outcome.shipped.op}, {outcome.shipped.shape}, sm_{outcome.arch}"
            print(f"\nfailed: {where}: {outcome.error}")
    result = summary(outcomes, options.archs)
    report.print_json({"benchmark": "kernel_resources", "dtype": options.dtype, **result})
    return 1 if result["failed"] or result["decode_spills"] else 0
