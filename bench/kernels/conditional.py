"""What one turn of a loop costs: launched by the host, or by conditional nodes of a CUDA graph.

    python -m bench.conditional            # needs a GPU and nvcc
    python -m bench.conditional --dry-run  # only prints what it would do

This compiles and runs `bench/kernels/conditional_nodes.cu`, which needs neither torch nor this
package.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import command_parser
from rsd_kernels.cuda import build as cuda_build

SOURCE = Path(__file__).with_name("conditional_nodes.cu")
TURNS = 1024
_PATIENCE = 40  # seconds for the compiler, and for the probe
BASELINE = "host, a graph a turn, waits"


class ProbeError(RuntimeError):
    """The probe could not be compiled, or did not run to its end."""


def compile_probe(folder: Path, arch: str) -> Path:
    """Compiles the program for `arch`, such as sm_90, into a folder.

    Raises:
        ProbeError: there is no nvcc, or it fails.
    """
    search = cuda_build.find_nvcc(os.environ)
    if search.path is None:
        raise ProbeError(search.reason)
    made = folder / "conditional_nodes"
    command = [str(search.path), "-O3", "-std=c++17", f"-arch={arch}", "-o", str(made)]
    _run([*command, str(SOURCE)])
    return made


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What the probe printed: one case per line."""
    return [json.loads(line) for line in lines if line.startswith("{")]


def measure(turns: int) -> list[dict[str, Any]]:
    """Compiles the probe for the current device and runs it.

    Raises:
        ProbeError: it does not compile, fails, or does not end in time.
    """
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        probe = compile_probe(Path(folder), f"sm_{major}{minor}")
        return parse(_run([str(probe), str(turns)]).splitlines())


def saved(cases: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Microseconds a turn that WHILE with SWITCH saves over a host that waits after every turn."""
    found = {}
    for case in cases:
        if case["case"] != "WHILE, SWITCH of 15":
            continue
        same = ("kernels", "reads")
        [base] = [c for c in cases if c["case"] == BASELINE and all(c[k] == case[k] for k in same)]
        name = f"{case['kernels']} kernels" + (" that read" if case["reads"] else "")
        found[name] = base["us_a_turn"] - case["us_a_turn"]
    return found


def table(cases: Sequence[dict[str, Any]]) -> str:
    columns = sorted({(c["kernels"], c["reads"]) for c in cases})
    names = list(dict.fromkeys(c["case"] for c in cases))
    value = {(c["case"], c["kernels"], c["reads"]): c["us_a_turn"] for c in cases}
    rows = [[name, *(f"{value[name, *column]:.2f}" for column in columns)] for name in names]
    headers = [f"{kernels}{' that read' if reads else ''}" for kernels, reads in columns]
    return report.format_table(["us a turn, by kernels in it", *headers], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("conditional", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="compile and run nothing")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args(arguments)
    if options.dry_run:
        print(f"would compile and run {SOURCE.name}")
        report.print_json({"bench": "conditional", "cases": [], "dry_run": True})
        return 0
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    cases = measure(options.turns)
    print(table(cases))
    report.print_json({"bench": "conditional", "cases": cases, "saved_us_a_turn": saved(cases)})
    return 0


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"{Path(command[0]).name} did not end in {_PATIENCE} s") from error
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise ProbeError(f"{Path(command[0]).name} ended with {done.returncode}:\n{said}")
    return done.stdout
