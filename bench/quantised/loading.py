"""What it takes to load a model from its file, in a process of its own.

    python -m bench.quantised.loading FILE

Prints one line of JSON: seconds until a model is ready, without its tokenizer, and the most memory
that the process gained until all weights had been read once. Pages of a mapped file count; what is
imported does not, for the model is loaded once before.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.loader import load_language_model
from rsd_kernels.formats.weight import StoredMatrix

_STATUS, _FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_POSITIONS = 512


def loaded(file: Path) -> dict[str, Any]:
    """What a new process says of a file."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.quantised.loading", str(file)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(file: str) -> None:
    load_language_model(file, max_rows=1, max_positions=_POSITIONS)
    gc.collect()
    _FORGET_PEAK.write_text("5")
    before, start = _kilobytes("VmRSS"), time.perf_counter()
    model = load_language_model(file, max_rows=1, max_positions=_POSITIONS)
    seconds = time.perf_counter() - start
    weights = model.decoder.weights
    layers = [
        w for layer in weights.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)
    ]
    tables = [t for weight in (model.lm_head, *layers) for t in weight.tables]
    for table in (weights.embedding, *tables):
        assert isinstance(table, Tensor | StoredMatrix)  # on a CPU
        rows = table.rows if isinstance(table, StoredMatrix) else table.view(torch.uint8)
        rows[:, ::64].sum()  # a byte of every cache line
    peak = 1024 * (_kilobytes("VmHWM") - before)
    size = Path(file).stat().st_size
    print(
        json.dumps(
            {
                "file_bytes": size,
                "weight_bytes": model.weight_bytes,
                "load_seconds": seconds,
                "peak_bytes": peak,
                "peak_share": peak / size,
            }
        )
    )


def _kilobytes(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    main(sys.argv[1])
