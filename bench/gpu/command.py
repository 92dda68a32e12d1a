"""Everything that needs a GPU, in one run: tests, then benchmarks, the most important first.

    python -m bench.gpu --output results [--budget 450]
    python -m bench.gpu --dry-run          # all of it on a CPU, in tiny sizes

Kernels are compiled first, on all cores. Every part is a process with a time limit. Its result is
in `OUTPUT/PART.json` as soon as it ends. `OUTPUT/summary.json` says how all parts went, what the
brief ones found, and which bars are met (`bench.gpu.bars`). A second call runs only those parts
that have not passed yet on this commit and device.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.gpu import bars
from bench.gpu.parts import build_parts, chosen, parts
from bench.gpu.runner import Identity, Runner, now
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser


def machine(commit: str | None) -> dict[str, Any]:
    """Device, driver, versions and commit."""
    return report.machine() | {
        "commit": commit,
        "driver": report.driver(),
        "cuda": torch.version.cuda,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    commit = options.commit or os.environ.get("RSD_COMMIT") or report.commit()
    found = machine(commit)
    identity = Identity(commit, found["device"], options.dry_run)
    runner = Runner(options.output, identity, options.budget)
    start = time.monotonic()
    print(json.dumps(found), flush=True)
    builds = _build(runner)
    results = [_show(runner.run(part)) for part in chosen(options.parts)]
    judged = bars.evaluate(results_of(runner, results))
    summary = {
        "bench": "gpu", "date": now(), "dry_run": options.dry_run, "machine": found,
        "seconds": round(time.monotonic() - start, 1), "budget": options.budget,
        "builds": {built["part"]: _brief(built) for built in builds},
        "parts": {r["part"]: _brief(r) for r in results},
        "bars": [bar.to_dict() for bar in judged],
    }  # fmt: skip
    print(f"\n{bars.table(judged)}\n")
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary), flush=True)
    bad = [r["part"] for r in (*results, *builds) if r["status"] not in ("passed", "missing")]
    return 1 if bad else 0


def results_of(runner: Runner, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of every part, from this run or an earlier one."""
    before = {part.name: found for part in parts() if (found := runner.known(part))}
    return {name: r["result"] for name, r in (before | {r["part"]: r for r in results}).items()}


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    """How a part went, and what it found if it has no file, so that the last line stays short."""
    own_file = any(part.name == found["part"] and not part.brief for part in parts())
    keys = ["status", "seconds", "resumed"]
    if not own_file:
        explained = found["status"] == "passed" and found.get("result") is not None
        keys += ["result"] if explained else ["result", "output"]
    return {key: found.get(key) for key in keys}


def _build(runner: Runner) -> list[dict[str, Any]]:
    """Runs all compilers at once; a part whose kernels do not compile will say so itself."""
    with ThreadPoolExecutor() as pool:
        builds = list(pool.map(runner.child, build_parts(runner.identity.dry_run)))
    return [_show(built) for built in builds]


def _show(found: dict[str, Any]) -> dict[str, Any]:
    """Prints how a part went; returns it."""
    again = ", from an earlier run" if found.get("resumed") else ""
    print(f"\n== {found['part']}: {found['status']}, {found['seconds']} s{again}")
    if not found.get("resumed"):
        print("\n".join(found.get("output", [])), flush=True)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("gpu", __doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--budget", type=float, default=450, help="seconds for everything")
    parser.add_argument("--commit", help="commit, if there is no .git (or set RSD_COMMIT)")
    parser.add_argument("--parts", nargs="+", choices=[p.name for p in chosen(None)])
    parser.add_argument("--dry-run", action="store_true", help="run tiny sizes on a CPU")
    return parser
