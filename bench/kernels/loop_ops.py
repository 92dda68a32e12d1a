"""The loop ops (reward, decision, rollback) of 16 slots, beside the same in PyTorch ops.

    python -m bench.control                # on a GPU
    python -m bench.control --dry-run      # the same on a CPU, in tiny sizes

Both must first give the results of the twins. Each is then timed as one CUDA graph and launched by
the host, on states of its own, which are restored before every run. Every call reads its own reward
head from memory; `limit_us` is 5 us and twice the time of that read at the measured bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench.gpu.bars import LOOP_OP_US, TIMES_EAGER
from bench.kernels.loop_op_cases import (
    HEAD_KINDS,
    LoopOpCase,
    reward_case,
    rollback_case,
    score_case,
)
from bench.kernels.loop_op_state import LoopOpSizes
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser
from bench.lib.report import FailureLog
from bench.lib.timing import Calls, alternate_calls
from rsd_engine.roofline.measured import read_bandwidth

_COPIES = 32
_HEAD_READS, _HEAD_US = 2, 5.0  # what a call may take: so many reads of the head, and a launch


def cases(sizes: LoopOpSizes, device: torch.device) -> list[Callable[[], LoopOpCase]]:
    """Functions that each make a case, so that only one is in memory at a time."""
    found: list[Callable[[], LoopOpCase]] = [lambda: rollback_case(sizes, device)]
    for width in sizes.widths:
        for kind in HEAD_KINDS:
            found.append(partial(reward_case, sizes, device, width, kind))
            found.append(partial(score_case, sizes, device, width, kind))
    return found


def measure(
    make: Callable[[], LoopOpCase], device: torch.device, runs: int, bandwidth: float
) -> dict[str, Any]:
    """The gate, then both implementations, in a graph and launched by the host, in alternation.

    Raises:
        Mismatch: a result is not that of the twin.
    """
    case = make()
    case.gate()
    contenders = {}
    for name, call in (("ours", case.ours), ("torch ops", case.torch_ops)):
        for captured, where in ((True, "graph"), (False, "host")):
            contenders[f"{name}, {where}"] = Calls(call, case.reset, captured)
    timings = alternate_calls(contenders, device=device, copies=case.copies, runs=runs)
    us = {name: 1e6 * timing.median for name, timing in timings.items()}
    return {
        "op": case.name,
        "us": us,
        "spread": {name: timing.spread for name, timing in timings.items()},
        "times_faster_than_eager": us["torch ops, host"] / us["ours, graph"],
        "times_faster_than_torch_graph": us["torch ops, graph"] / us["ours, graph"],
        "within_10_us": us["ours, graph"] <= LOOP_OP_US,
        "at_least_5_times": us["torch ops, host"] >= TIMES_EAGER * us["ours, graph"],
        "head_bytes": case.head_bytes,
        "limit_us": 1e6 * _HEAD_READS * case.head_bytes / bandwidth + _HEAD_US,
    }


def table(measured: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            entry["op"],
            *(f"{us:.1f}" for us in entry["us"].values()),
            f"{entry['times_faster_than_eager']:.1f}x",
            f"{entry['times_faster_than_torch_graph']:.1f}x",
        ]
        for entry in measured
    ]
    names = list(measured[0]["us"])
    return report.format_table(["us", *names, "eager / graph", "both graphs"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("control", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="run tiny sizes on a CPU")
    parser.add_argument("--runs", type=int, default=25, help="timed runs of each contender")
    options = parser.parse_args(arguments)
    if options.dry_run:
        sizes, device, runs = LoopOpSizes.tiny(), torch.device("cpu"), 2
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        sizes, runs = LoopOpSizes.real(_COPIES), options.runs
    else:
        parser.error(NO_GPU)
    bandwidth = read_bandwidth(device, 2**24 if options.dry_run else None)
    failures = FailureLog()
    entries = failures.run_each(
        (f"op {number}", partial(measure, make, device, runs, bandwidth))
        for number, make in enumerate(cases(sizes, device))
    )
    measured = list(entries.values())
    print(f"{sizes.num_slots} slots, {sizes.num_columns} columns of the page table")
    if measured:
        print(table(measured))
    print(
        "eager / graph: PyTorch ops launched by the host against our graph; "
        "score does more than its PyTorch ops do (draws, trace, log)"
    )
    report.print_json_or_fail(
        {
            "bench": "control",
            "slots": sizes.num_slots,
            "bandwidth_bytes_per_second": bandwidth,
            "ops": measured,
            "failed": failures.messages,
        }
    )
    return 0
