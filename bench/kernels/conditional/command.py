"""What works in the bodies of conditional nodes of a CUDA graph, and what a turn of a loop costs.

    python -m bench.conditional                  # needs a GPU, and nvcc
    python -m bench.conditional --build FOLDER   # compiles only; needs no GPU
    python -m bench.conditional --binary FILE    # what --build has made; needs no nvcc
    python -m bench.conditional --dry-run        # only prints what it would do

The program, `nodes.cu`, needs neither torch nor this package.
Every probe (WHILE, IF, SWITCH, kernels that start early, cooperative kernels) runs in a process of
its own, since it may hang: one that fails is a finding.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import NO_GPU, command_parser
from rsd_kernels.cuda import build as cuda_build

SOURCE = Path(__file__).with_name("nodes.cu")
BINARY = "conditional_nodes"
TURNS = 256
PROBES = (
    "while", "if", "switch", "early", "early-in-while", "cooperative-in-while", "plain-in-switch",
    "early-in-switch", "cooperative-in-switch",
)  # fmt: skip
NEEDED = ("while", "switch")  # by the device loop
BASELINE = "host, a graph a turn, waits"
_PATIENCE = 40  # seconds for the compiler, and for all timed cases
_PROBE_SECONDS = 5


class ProbeError(RuntimeError):
    """The program could not be compiled, or did not run to its end."""


def compile_probe(folder: Path, arch: str) -> Path:
    """Compiles the program for `arch`, such as sm_90, into a folder.

    Raises:
        ProbeError: there is no nvcc, or it fails.
    """
    search = cuda_build.find_nvcc(os.environ)
    if search.path is None:
        raise ProbeError(search.reason)
    made = folder / BINARY
    command = [
        str(search.path), "-O3", "-std=c++17", f"-arch={arch}", "-cudart=static",
        "-Xcompiler=-static-libstdc++,-static-libgcc", "-o", str(made),
    ]  # fmt: skip
    _run([*command, str(SOURCE)], _PATIENCE)
    return made


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What the program printed: one case per line."""
    return [json.loads(line) for line in lines if line.startswith("{")]


def measure(binary: Path, turns: int) -> list[dict[str, Any]]:
    """Times every case.

    Raises:
        ProbeError: the program fails, or does not end in time.
    """
    return parse(_run([str(binary), "times", str(turns)], _PATIENCE).splitlines())


def probe(binary: Path, name: str, turns: int) -> dict[str, Any]:
    """Whether a probe `works`, and its microseconds a turn; else `why` not."""
    try:
        [case] = parse(_run([str(binary), name, str(turns)], _PROBE_SECONDS).splitlines())
    except ProbeError as error:
        return {"works": False, "why": str(error)}
    return {"works": True, "us_a_turn": case["us_a_turn"]}


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
    parser.add_argument("--build", type=Path, help="compile into this folder, and run nothing")
    parser.add_argument("--arch", default="sm_90", help="of --build")
    parser.add_argument("--binary", type=Path, help="run this program, compiled beforehand")
    options = parser.parse_args(arguments)
    if options.build is not None:
        options.build.mkdir(parents=True, exist_ok=True)
        print(compile_probe(options.build, options.arch))
        return 0
    if options.dry_run:
        print(f"would compile and run {SOURCE.name}")
        report.print_json({"bench": "conditional", "probes": {}, "cases": [], "dry_run": True})
        return 0
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    found: dict[str, Any] = {"bench": "conditional", "probes": {}}
    with _program(options.binary) as program:
        for name in PROBES:
            found["probes"][name] = probe(program, name, options.turns)
            print(f"{name}: {found['probes'][name]}")
            report.print_json(found)  # in case the next one hangs
        cases = measure(program, options.turns)
    print(table(cases))
    report.print_json(found | {"cases": cases, "saved_us_a_turn": saved(cases)})
    return 0 if all(found["probes"][name]["works"] for name in NEEDED) else 1


@contextmanager
def _program(binary: Path | None) -> Iterator[Path]:
    """The program that was compiled beforehand, if it runs here; else one compiled now."""
    if binary is not None and _starts(binary):
        yield binary
        return
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        yield compile_probe(Path(folder), f"sm_{major}{minor}")


def _starts(binary: Path) -> bool:
    """Whether it was made for this machine, whatever it then finds."""
    try:
        _run([str(binary), PROBES[0]], _PROBE_SECONDS)
    except ProbeError as error:
        print(f"{binary}: {error}", flush=True)
        return "cannot be started" not in str(error) and "GLIBC" not in str(error)
    return True


def _run(command: list[str], patience: float) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"{name} did not end in {patience} s") from error
    except OSError as error:
        raise ProbeError(f"{name} cannot be started: {error}") from error
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise ProbeError(f"{name} ended with {done.returncode}:\n{said}")
    return done.stdout
