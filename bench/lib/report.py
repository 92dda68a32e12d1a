"""What every benchmark prints: a table for people, then one line of JSON for programs."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

_PACKAGES = ("rsd-engine", "torch", "transformers", "triton")

Result = TypeVar("Result")


class FailureLog:
    """Runs parts of a benchmark, so that one that fails does not stop the others.

    Time on a GPU is short: what can be measured is measured.

    Attributes:
        messages: what failed and why, in order.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    def run_each(self, parts: Iterable[tuple[str, Callable[[], Result]]]) -> dict[str, Result]:
        """Calls every function and returns the results by label, without those that raised."""
        results = {}
        for label, fn in parts:
            try:
                results[label] = fn()
            except Exception as error:  # of a compiler, a driver or a gate: all are findings
                self.messages.append(f"{label}: {type(error).__name__}: {error}")
                print(f"failed: {self.messages[-1]}", flush=True)
        return results


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first aligned left and the others right.

    Raises:
        ValueError: a row has more or fewer cells than there are headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells for {len(headers)} headers: {row}")
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(row, widths) for row in (headers, rule, *rows))


def machine() -> dict[str, Any]:
    """The hardware and the software that the figures belong to."""
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": commit(),
    }


def device_name() -> str:
    """The name of the GPU if there is one, else of the processor, with its vector instructions."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def driver() -> str | None:
    """The version of the GPU's driver, or None if there is no driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0].strip() or None


def commit() -> str | None:
    """The commit of this checkout, ending in "-dirty" if files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def print_json(result: Mapping[str, Any]) -> None:
    """Prints the last line of a benchmark: valid JSON, in which NaN and infinity become null."""
    print(json.dumps(_clean(dict(result) | {"machine": machine()})), flush=True)


def print_json_or_fail(result: Mapping[str, Any]) -> None:
    """Prints the last line of a benchmark; then fails if anything in `result["failed"]` did.

    Raises:
        SystemExit: naming the first failure.
    """
    print_json(result)
    failed = result["failed"]
    if failed:
        raise SystemExit(f"{len(failed)} failed, the first: {failed[0]}")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _clean(value: Any) -> Any:
    """Floats to six significant digits; NaN and infinities to null."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
