"""Runs the parts of `bench.gpu`, each in a process of its own, and keeps their results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.parts import Part

ROOT = Path(__file__).resolve().parents[2]
_OUTPUT_LINES = 60  # of a part, that are kept


@dataclass(frozen=True)
class Identity:
    """What a result is valid for."""

    commit: str | None
    device: str
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        return {"commit": self.commit, "device": self.device, "dry_run": self.dry_run}


class Runner:
    """Runs parts until the budget is used up.

    Args:
        output: folder of the results.
        identity: what they are valid for.
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
        """Runs a part, unless an earlier result is valid for this commit and device."""
        known = self.known(part)
        if known is not None:
            return known | {"resumed": True}
        if part.missing:
            return {"part": part.name, "status": "missing", "seconds": 0.0, "result": None}
        if self.left < part.least:
            return {"part": part.name, "status": "no time", "seconds": 0.0, "result": None}
        found = self.identity.as_dict() | self.child(part) | {"date": now()}
        if part.brief:
            return found
        self._path(part).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found

    def child(self, part: Part) -> dict[str, Any]:
        """Runs a part in a process, stopped at its limit or at the end of the budget."""
        limit = max(1.0, min(part.limit, self.left))
        start = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, *part.command(self.identity.dry_run)],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=_variables(),
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=limit)
                status = "passed" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                _stop(process)
                code, status = None, f"stopped after {limit:.0f} s"
            output.seek(0)
            lines = output.read().splitlines()
        return {
            "part": part.name,
            "status": status,
            "exit_status": code,
            "seconds": round(time.monotonic() - start, 1),
            "result": last_json(lines),
            "output": [line for line in lines if not line.startswith("{")][-_OUTPUT_LINES:],
        }

    def known(self, part: Part) -> dict[str, Any] | None:
        """The result of an earlier run, if it passed and is valid here."""
        try:
            found = json.loads(self._path(part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        commit, same = self.identity.commit, self.identity.as_dict()
        is_clean = commit is not None and not commit.endswith("-dirty")
        is_valid = is_clean and all(found.get(key) == same[key] for key in same)
        return found if is_valid and found.get("status") == "passed" else None

    def _path(self, part: Part) -> Path:
        return self.output / f"{part.name}.json"


def last_json(lines: Sequence[str]) -> Any:
    """The last line of JSON that a benchmark printed; None if there is none."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def now() -> str:
    """The time, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _variables() -> dict[str, str]:
    """The environment, with the packages of this checkout before any that are installed."""
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a process group; by SIGTERM first, so that the process can stop other groups."""
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
