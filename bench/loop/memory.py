"""The memory that an engine takes, beside what it says it takes.

    python -m bench.memory                       # the demo family on a CPU: resident memory
    python -m bench.memory --preset 1.5b-7b      # on a GPU: memory of the device

`Engine.memory` adds up tensors. This measures what the process or the device really holds, after
start-up and at the peak of a run that fills every slot.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import command_parser, positive
from bench.lib.random_models import TRIPLES
from rsd_engine import Constant, Engine, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.engine.memory_report import MemoryReport
from rsd_engine.memory.available import megabytes

_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Meter:
    """Measures bytes held: now, and at most since the last `reset_peak`."""

    what: str
    now: Callable[[], int]
    peak: Callable[[], int]
    reset_peak: Callable[[], None]


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    meter = _device_meter(device) if device.type == "cuda" else _process_meter()
    _warm_up(device)
    gc.collect()
    before = meter.now()
    meter.reset_peak()
    with open_engine(given, device) as engine:
        loaded, loading_peak = meter.now() - before, meter.peak() - before
        meter.reset_peak()
        full = _run(engine, given)
        peak = meter.peak() - before
    print(full.text())
    said = full.total if device.type == "cuda" else touched_bytes(full)
    rows = [
        ["said by the engine", megabytes(full.total), f"{full.total / said:.2f}"],
        ["of that, without unused pages", megabytes(said), "1"],
        ["held after start-up", megabytes(loaded), f"{loaded / said:.2f}"],
        ["peak of start-up", megabytes(loading_peak), f"{loading_peak / said:.2f}"],
        ["peak of the run", megabytes(peak), f"{peak / said:.2f}"],
    ]
    print(report.format_table((meter.what, "", "ratio"), rows))
    result: dict[str, Any] = {
        "bench": "memory",
        "preset": given.preset,
        "on": str(device),
        "measure": meter.what,
        "report": full.to_dict(),
        "held_after_start": loaded,
        "peak_of_start": loading_peak,
        "peak_of_run": peak,
        "said": said,
        "peak_over_said": peak / said,
    }
    report.print_json(result)
    return 0


def open_engine(given: argparse.Namespace, device: torch.device) -> Engine:
    length = given.prompt_tokens + given.new_tokens
    arguments: dict[str, Any] = {
        "device": device,
        "step_delimiters": None,
        "enable_prefix_caching": False,
        "max_num_seqs": given.slots,
        "max_model_len": length,
    }
    if given.preset == "demo":
        return Engine(
            checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm"), **arguments
        )
    return Engine(*TRIPLES[given.preset].checkpoints(device, None, 2 * length + 128), **arguments)


def _run(engine: Engine, given: argparse.Namespace) -> MemoryReport:
    """Fills every slot; returns the report at the moment when most pages were held."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=given.new_tokens,
        max_step_tokens=16,
        max_steps=given.new_tokens,
        ignore_eos=True,
        policy=Constant(0.7),
        seed=0,
    )
    going = []
    for slot in range(given.slots):
        ids = [2 + (7 * slot + i) % 200 for i in range(given.prompt_tokens)]
        going.append(iter(engine.stream({"prompt_token_ids": ids, "question": "?"}, params)))
    fullest = engine.memory
    while going:
        for stream in list(going):
            if next(stream, None) is None:
                going.remove(stream)
        now = engine.memory
        if _pages_held(now) >= _pages_held(fullest):
            fullest = now
    return fullest


def touched_bytes(found: MemoryReport) -> int:
    """The total without pages that no slot ever held: a CPU hands memory out at its first use.

    Freed pages go back onto a stack and are taken from its top again, so the pages held at the peak
    are all that were ever used.
    """
    return found.total - found.pool + _pages_held(found) * found.page_bytes


def _pages_held(found: MemoryReport) -> int:
    return sum(use.pages_held for use in found.pages.values())


def _process_meter() -> Meter:
    """Resident memory of this process; the kernel keeps the peak and resets it on request."""
    return Meter(
        "resident memory",
        now=lambda: _status_bytes("VmRSS"),
        peak=lambda: _status_bytes("VmHWM"),
        reset_peak=_reset_peak,
    )


def _reset_peak() -> None:
    _RESET_PEAK.write_text("5")


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")


def _device_meter(device: torch.device) -> Meter:
    """What PyTorch's allocator reserved on the device, without the CUDA context."""
    return Meter(
        "device memory",
        now=lambda: torch.cuda.memory_reserved(device),
        peak=lambda: torch.cuda.max_memory_reserved(device),
        reset_peak=lambda: torch.cuda.reset_peak_memory_stats(device),
    )


def _warm_up(device: torch.device) -> None:
    """Loads libraries that are loaded at first use: their memory is not the engine's."""
    import transformers

    assert transformers.PreTrainedTokenizerFast is not None
    a = torch.ones(64, 64, device=device)
    (a @ a).sum().item()


def parser() -> argparse.ArgumentParser:
    parser = command_parser("memory", __doc__)
    parser.add_argument("--preset", choices=(*TRIPLES, "demo"), default="demo")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--slots", type=positive, default=8)
    parser.add_argument("--prompt-tokens", type=positive, default=128)
    parser.add_argument("--new-tokens", type=positive, default=128)
    return parser
