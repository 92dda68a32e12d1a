"""Everything that needs a GPU, in one go: tests, then benchmarks, most important first.

    python -m bench.gpu --output results [--budget 450]
    python -m bench.gpu --dry-run          # the whole plan on a CPU, in tiny sizes

Kernels are compiled first, on all cores. Every part is a process of its own with a limit of its
own; what it found lies in `OUTPUT/PART.json` as soon as it ends, and `OUTPUT/summary.json` says
how all of them went, what the brief ones found, and which bars are met (`bench.bars`). A second
call runs only what has not passed yet on this commit and device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.gpu import bars
from bench.gpu.parts import Part, build_parts, chosen, parts
from bench.lib import report

ROOT = Path(__file__).resolve().parents[2]
_MERGES = 60  # lines of a part's output that are kept


@dataclass(frozen=True)
class Identity:
    """What a result holds for: the same part elsewhere is another measurement."""

    commit: str | None
    device: str
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        return {"commit": self.commit, "device": self.device, "dry_run": self.dry_run}


class Runner:
    """Runs parts until the budget is used up.

    Args:
        output: folder of the results.
        identity: what they hold for.
        budget: seconds for everything.
    """

    def __init__(self, output: Path, identity: Identity, budget: float) -> None:
        self.output = output
        self.identity = identity
        self.deadline = time.monotonic() + budget

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, part: Part) -> dict[str, Any]:
        """What a part found: from its file if that holds for this commit and device."""
        known = self.known(part)
        if known is not None:
            return known | {"resumed": True}
        if part.missing:
            return {"part": part.name, "status": "missing", "seconds": 0.0, "result": None}
        if self.left < part.least:
            return {"part": part.name, "status": "no time", "seconds": 0.0, "result": None}
        found = self.identity.as_dict() | self.child(part) | {"date": _now()}
        if part.brief:
            return found
        self._path(part).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found

    def child(self, part: Part) -> dict[str, Any]:
        """One process, stopped at the part's limit or at the end of the budget."""
        limit = max(1.0, min(part.limit, self.left))
        start = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            process = subprocess.Popen(
                [sys.executable, *part.command(self.identity.dry_run)],
                cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, env=_variables(),
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=limit)
                status = "passed" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                _stop(process)
                code, status = None, f"stopped after {limit:.0f} s"
            said.seek(0)
            lines = said.read().splitlines()
        return {
            "part": part.name,
            "status": status,
            "exit_status": code,
            "seconds": round(time.monotonic() - start, 1),
            "result": last_json(lines),
            "output": [line for line in lines if not line.startswith("{")][-_MERGES:],
        }

    def known(self, part: Part) -> dict[str, Any] | None:
        """What it found in an earlier run, if it passed and that run was of the same things."""
        try:
            found = json.loads(self._path(part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        commit, same = self.identity.commit, self.identity.as_dict()
        named = commit is not None and not commit.endswith("-dirty")
        holds = named and all(found.get(key) == same[key] for key in same)
        return found if holds and found.get("status") == "passed" else None

    def _path(self, part: Part) -> Path:
        return self.output / f"{part.name}.json"


def last_json(lines: Sequence[str]) -> Any:
    """The last line of a benchmark, or None where it printed none."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


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
        print("there is no CUDA device here; --dry-run walks through the plan on a CPU")
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    commit = options.commit or os.environ.get("RSD_COMMIT") or report.commit()
    found = machine(commit)
    identity = Identity(commit, found["device"], options.dry_run)
    runner = Runner(options.output, identity, options.budget)
    start = time.monotonic()
    print(json.dumps(found), flush=True)
    builds = _build(runner)
    results = [_tell(runner.run(part)) for part in chosen(options.parts)]
    judged = bars.evaluate(_figures(runner, results))
    summary = {
        "bench": "gpu", "date": _now(), "dry_run": options.dry_run, "machine": found,
        "seconds": round(time.monotonic() - start, 1), "budget": options.budget,
        "builds": {built["part"]: _in_short(built) for built in builds},
        "parts": {r["part"]: _in_short(r) for r in results},
        "bars": [bar.to_dict() for bar in judged],
    }  # fmt: skip
    print(f"\n{bars.table(judged)}\n")
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary), flush=True)
    bad = [r["part"] for r in (*results, *builds) if r["status"] not in ("passed", "missing")]
    return 1 if bad else 0


def _figures(runner: Runner, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By part, what it printed, now or in an earlier run."""
    before = {part.name: found for part in parts() if (found := runner.known(part))}
    return {name: r["result"] for name, r in (before | {r["part"]: r for r in results}).items()}


def _in_short(found: dict[str, Any]) -> dict[str, Any]:
    """How a part went; all it found where no file of its own says it. The last line stays short."""
    own_file = any(part.name == found["part"] and not part.brief for part in parts())
    keys = ["status", "seconds", "resumed"]
    if not own_file:
        told = found["status"] == "passed" and found.get("result") is not None
        keys += ["result"] if told else ["result", "output"]
    return {key: found.get(key) for key in keys}


def _build(runner: Runner) -> list[dict[str, Any]]:
    """All compilers at once; a part whose kernels did not compile says so itself."""
    with ThreadPoolExecutor() as pool:
        builds = list(pool.map(runner.child, build_parts(runner.identity.dry_run)))
    return [_tell(built) for built in builds]


def _tell(found: dict[str, Any]) -> dict[str, Any]:
    again = ", from an earlier run" if found.get("resumed") else ""
    print(f"\n== {found['part']}: {found['status']}, {found['seconds']} s{again}")
    if not found.get("resumed"):
        print("\n".join(found.get("output", [])), flush=True)
    return found


def _variables() -> dict[str, str]:
    """The packages of this checkout come first, whether or not they are installed."""
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started; asked first, so that it can stop its own children."""
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--budget", type=float, default=450, help="seconds for everything")
    parser.add_argument("--commit", help="where there is no .git; RSD_COMMIT does the same")
    parser.add_argument("--parts", nargs="+", choices=[p.name for p in chosen(None)])
    parser.add_argument("--dry-run", action="store_true")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
