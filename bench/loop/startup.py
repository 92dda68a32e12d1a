"""The time from the start of a process to the first token, by its stages.

    python -m bench.startup                     # random weights of the size of Qwen2.5-0.5B
    python -m bench.startup --full-page-cache   # again while the page cache fills the memory

A checkpoint with random weights is written to a temporary folder, so its files are in the page
cache and the time is not that of a disk. The engine gets its defaults and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import command_parser
from bench.lib.random_models import QWEN_TOKENS, RandomCheckpoint, tiny_config, write_checkpoint
from rsd_engine.memory.available import host_available_bytes, megabytes
from rsd_engine.roofline.presets import PRESETS

_ROOT = Path(__file__).resolve().parents[2]
_PIECE = 1 << 24  # bytes read at once
_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        page_cache: "as it is" or "full".
        free: bytes that nothing used before it, not even the page cache.
        available: bytes that a process could have got.
        facts: see `bench.loop.first_token`.
    """

    page_cache: str
    free: int
    available: int
    facts: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(_checkpoint(given.preset), folder / "model")
        starts = [_start("as it is", folder / "model")]
        if given.full_page_cache:
            fill_page_cache(folder / "zeros")
            starts.append(_start("full", folder / "model"))
    print(_table(starts))
    report.print_json(
        {"bench": "startup", "preset": given.preset, "starts": [vars(start) for start in starts]}
    )
    return 0


def fill_page_cache(path: Path) -> None:
    """Makes a file that the page cache holds instead of free memory, until it is deleted.

    The file is sparse: it takes no room on the disk. The kernel keeps some memory free.
    """
    with path.open("wb") as file:
        file.truncate(_free_bytes())
    piece = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def _start(page_cache: str, folder: Path) -> Start:
    """Starts an engine in a new process.

    Raises:
        RuntimeError: it did not start.
    """
    free, available = _free_bytes(), host_available_bytes()
    command = [sys.executable, "-m", "bench.loop.first_token", str(folder), str(time.time())]
    found = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, timeout=_TIMEOUT)
    if found.returncode:
        raise RuntimeError(f"the engine did not start: {found.stderr.strip().splitlines()[-1]}")
    return Start(page_cache, free, available, json.loads(found.stdout.splitlines()[-1]))


def _table(starts: Sequence[Start]) -> str:
    """A row a stage, a column a start."""
    each = [start.facts for start in starts]
    rows = [
        [stage, *(f"{facts['stages'][stage]:.2f} s" for facts in each)]
        for stage in each[0]["stages"]
    ]
    rows.append(["all", *(f"{facts['seconds']:.2f} s" for facts in each)])
    rows.append(["free before", *(megabytes(start.free) for start in starts)])
    rows.append(["available before", *(megabytes(start.available) for start in starts)])
    rows.append(["weights", *(megabytes(facts["weights"]) for facts in each)])
    rows.append(["KV pages", *(megabytes(facts["pages"]) for facts in each)])
    rows.append(["max_model_len", *(str(facts["max_model_len"]) for facts in each)])
    return report.format_table(("page cache", *(start.page_cache for start in starts)), rows)


def _free_bytes() -> int:
    """MemFree of /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":") for line in lines)
    return int(values["MemFree"].split()[0]) * 1024


def _checkpoint(preset: str) -> RandomCheckpoint:
    raw, num_tokens = (tiny_config(32), 300) if preset == "tiny" else (PRESETS[preset], QWEN_TOKENS)
    return RandomCheckpoint(preset, raw, torch.device("cpu"), num_tokens=num_tokens, seed=1)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("startup", __doc__)
    models = [name for name in PRESETS if name.startswith("qwen2.5-") and "prm" not in name]
    parser.add_argument("--preset", choices=("tiny", *models), default="qwen2.5-0.5b")
    parser.add_argument(
        "--full-page-cache",
        action="store_true",
        help="start once more after reading a file as large as the memory that is free",
    )
    return parser
