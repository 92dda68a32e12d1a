"""Hardware counters of the decode kernels, by Nsight Compute where it is installed.

    python -m bench.gpu.counters --output FOLDER [--dry-run]

Models of real widths but of two layers decode one token while `ncu` replays each kernel with a cold
cache. Its table, counters.csv, goes into the folder. Clocks are left as they are.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu.parts import MODELS
from bench.kernels.early_launch import starting_early
from bench.kernels.model_decode import Decoding
from bench.kernels.setting import REAL, Setting
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser

METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes_read.sum": "read",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of memory",
    "lts__t_sector_hit_rate.pct": "% hits in L2",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% of warps",
    "launch__registers_per_thread": "registers",
    "launch__waves_per_multiprocessor": "waves",
}
_KERNEL = "Kernel Name"
_LAYERS = 2
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/bin")
_INSTALLED = Path("/opt/nvidia/nsight-compute")  # holds a folder per version


def find_ncu() -> str | None:
    """Looks at PATH, CUDA_HOME and the usual folders."""
    home = os.environ.get("CUDA_HOME")
    folders = [os.environ.get("PATH", os.defpath), *([f"{home}/bin"] if home else []), *_FOLDERS]
    folders += [str(found) for found in sorted(_INSTALLED.glob("*"), reverse=True)]
    return shutil.which("ncu", path=os.pathsep.join(folders))


def decode_once(setting: Setting) -> None:
    """The passes that are looked at: `ncu` is told where they begin and end."""
    for shape in setting.shapes.values():
        decoding = Decoding.of(setting, replace(shape, num_layers=_LAYERS), 1)
        with starting_early(False):
            decoding.ours(0)  # loads the kernels
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            decoding.ours(0)
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()


def read_counters(lines: Iterable[str]) -> list[dict[str, str]]:
    """Rows of the table that `ncu` writes among other lines, values with their units."""
    cells = csv.reader(line for line in lines if line.startswith('"'))
    header, units, *rows = cells
    chosen = [name for name in header if name == _KERNEL or name in METRICS]
    places = {name: header.index(name) for name in chosen}
    return [{name: f"{row[at]} {units[at]}".strip() for name, at in places.items()} for row in rows]


def table(rows: Sequence[dict[str, str]]) -> str:
    shown = [[row[_KERNEL], *(row.get(metric, "-") for metric in METRICS)] for row in rows]
    return report.format_table(["kernel", *METRICS.values()], shown)


def count(ncu: str, output: Path) -> list[dict[str, str]]:
    """Runs `ncu` over `decode_once`.

    Raises:
        RuntimeError: it fails.
    """
    written = output / "counters.csv"
    command = [
        ncu, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
        "--metrics", ",".join(METRICS), "--log-file", str(written), "--force-overwrite",
        sys.executable, "-m", "bench.gpu.counters", "--output", str(output), "--launch",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        told = written.read_text(errors="replace") if written.exists() else ""
        raise RuntimeError(f"ncu ended with {done.returncode}:\n{said[-2000:]}\n{told[-2000:]}")
    return read_counters(written.read_text(errors="replace").splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.counters", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the table")
    parser.add_argument("--launch", action="store_true", help="only run what is looked at")
    parser.add_argument("--dry-run", action="store_true", help="likewise, tiny and on a CPU")
    options = parser.parse_args(arguments)
    if options.dry_run:
        decode_once(Setting.tiny())
        report.print_json({"bench": "gpu.counters", "kernels": []})
        return 0
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    if options.launch:
        decode_once(Setting.real({name: REAL[name] for name in MODELS}, runs=1))
        return 0
    ncu = find_ncu()
    if ncu is None:
        print("ncu was not found (looked at PATH, CUDA_HOME, /usr/local/cuda and /opt/nvidia)")
        report.print_json({"bench": "gpu.counters", "kernels": [], "ncu": None})
        return 0
    rows = count(ncu, options.output)
    print(table(rows))
    report.print_json({"bench": "gpu.counters", "kernels": rows, "ncu": ncu})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
