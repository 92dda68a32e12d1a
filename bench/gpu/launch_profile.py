"""Every kernel of one decode pass, replayed as a graph: its time, and the gap before it.

    python -m bench.gpu.launch_profile --output FOLDER [--dry-run]

The graph of one row and a context of 1k tokens is replayed once while PyTorch's profiler records
what the device does. The gap before a kernel is the time since all earlier ones had ended; it is
negative where a kernel starts early. What `rsd plan --launches` expects of each kernel follows.
Tables of all kernels and the profiler's traces go into the folder. On a CPU the profiler records
PyTorch's ops instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.gpu.parts import MODELS
from bench.kernels.early_launch import switched
from bench.kernels.model_decode import Decoding
from bench.kernels.setting import REAL, Setting
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser
from bench.lib.report import FailureLog
from bench.lib.timing import Calls, prepare
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.launch_times import Load
from rsd_engine.roofline.measured import read_bandwidth
from rsd_engine.roofline.sources import find_config
from rsd_engine.roofline.tick_times import tick_time
from rsd_engine.roofline.ticks import decode_tick
from rsd_kernels.launch import can_overlap

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the profiler's trace
_ON_CPU = ("cpu_op",)
_SHOWN = 60  # letters of a kernel's name


@dataclass(frozen=True)
class Run:
    """One run of a kernel, in microseconds."""

    name: str
    us: float
    gap_us: float  # 0 for the first one


def runs_of(events: Iterable[dict[str, Any]], categories: Sequence[str]) -> list[Run]:
    """The kernels of a trace in Chrome's format, in the order in which they began."""
    chosen = [event for event in events if event.get("cat") in categories and "dur" in event]
    found: list[Run] = []
    end = None
    for event in sorted(chosen, key=lambda event: float(event["ts"])):
        start, us = float(event["ts"]), float(event["dur"])
        found.append(Run(event["name"], us, 0.0 if end is None else start - end))
        end = start + us if end is None else max(end, start + us)
    return found


def by_kernel(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Means by kernel, the one that takes most time first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    found = [
        {
            "kernel": name,
            "runs": len(group),
            "us": mean(run.us for run in group),
            "gap_us": mean(run.gap_us for run in group),
            "total_us": sum(run.us + run.gap_us for run in group),
        }
        for name, group in groups.items()
    ]
    return sorted(found, key=lambda entry: -entry["total_us"])


def table(entries: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            entry["kernel"][:_SHOWN], str(entry["runs"]), f"{entry['us']:.2f}",
            f"{entry['gap_us']:.2f}", f"{entry['total_us']:.1f}",
        ]
        for entry in entries
    ]  # fmt: skip
    return report.format_table(["kernel", "runs", "us", "gap before", "us together"], rows)


def every_run(runs: Sequence[Run]) -> str:
    """A line per run."""
    rows = [[run.name, f"{run.us:.2f}", f"{run.gap_us:.2f}"] for run in runs]
    return report.format_table(["kernel", "us", "gap before"], rows)


def profiled(replay: Callable[[], object], device: torch.device, trace: Path) -> list[Run]:
    """The kernels of one replay; the trace is written to a file."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    for path in (trace, trace):  # the first time the profiler is set up, which takes long
        with torch.profiler.profile(activities=activities) as profiler:
            replay()
            if on_gpu:
                torch.cuda.synchronize(device)
        profiler.export_chrome_trace(str(path))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    runs = runs_of(events, _ON_DEVICE if on_gpu else _ON_CPU)
    if not runs:
        raise RuntimeError("the profiler has recorded no kernel")
    return runs


def profile_pass(setting: Setting, model: str, early: bool, output: Path) -> dict[str, Any]:
    """One decode pass of a model, its kernels launched plainly or early."""
    name = f"{model}{', early' if early else ''}"
    decoding = Decoding.of(setting, setting.shapes[model], 1)
    replay = prepare(Calls(switched(decoding.ours, early=early)), 1, setting.device)
    file = name.replace(", ", "_").replace(".", "_")
    runs = profiled(replay, setting.device, output / f"trace_{file}.json")
    (output / f"kernels_{file}.txt").write_text(every_run(runs) + "\n")
    entries = by_kernel(runs)
    gaps, total = sum(run.gap_us for run in runs), sum(run.us + run.gap_us for run in runs)
    print(f"\n{name}: {len(runs)} kernels, {total:.0f} us, of which {gaps:.0f} us between them")
    print(table(entries), flush=True)
    return {"launches": len(runs), "us": total, "gap_us": gaps, "kernels": entries}


def this_gpu(device: torch.device) -> Device:
    """As the roofline sees it, with its measured read bandwidth."""
    found = torch.cuda.get_device_properties(device)
    return Device(
        found.name, read_bandwidth(device), 1.0, found.total_memory,
        found.multi_processor_count, starts_early=can_overlap(),
    )  # fmt: skip


def expected_us(model: str, context: int, gpu: Device, *, early: bool) -> dict[str, float]:
    """What all runs of a kernel should take together, gaps included, as `rsd plan --launches` says.

    A model, to hold the measured table against.
    """
    config = find_config(model.lower())
    times = tick_time(decode_tick(config, config.dtype), Load(1, context), gpu, early=early)
    together: dict[str, float] = {}
    for kernel in times.forward:
        microseconds = 1e6 * kernel.launches * kernel.seconds
        together[kernel.name] = together.get(kernel.name, 0.0) + microseconds
    rows = [[name, f"{us:.1f}"] for name, us in together.items()]
    print(f"\n{model}{', early' if early else ''}: expected, {times.forward_seconds * 1e6:.0f} us")
    print(report.format_table(["kernel", "us together"], rows), flush=True)
    return together


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.launch_profile", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of tables and traces")
    parser.add_argument("--dry-run", action="store_true", help="run a tiny model on a CPU")
    options = parser.parse_args(arguments)
    if options.dry_run:
        setting = Setting.tiny()
    elif torch.cuda.is_available():
        setting = Setting.real({name: REAL[name] for name in MODELS}, runs=1)
    else:
        parser.error(NO_GPU)
    options.output.mkdir(parents=True, exist_ok=True)
    failures = FailureLog()
    result: dict[str, Any] = {
        "bench": "gpu.launch_profile", "passes": {}, "expected_us": {},
        "failed": failures.messages,
    }  # fmt: skip
    for early in (False, True) if can_overlap() else (False,):
        for model in setting.shapes:
            name = f"{model}{', early' if early else ''}"
            profile = partial(profile_pass, setting, model, early, options.output)
            result["passes"] |= failures.run_each([(name, profile)])
            if not options.dry_run:
                gpu, context = this_gpu(setting.device), setting.context
                expected = partial(expected_us, model, context, gpu, early=early)
                result["expected_us"] |= failures.run_each([(name, expected)])
            report.print_json(result)  # in case the profiler ends the process
    report.print_json_or_fail(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
