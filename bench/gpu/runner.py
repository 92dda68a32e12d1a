"""Runs the parts of `bench.gpu`, each in a process of its own, and keeps their results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.child import run_module
from bench.gpu.kernel_cache import compiled_kernels
from bench.gpu.parts import Part

_OUTPUT_LINES = 60  # of a part, that are kept beside its result


@dataclass(frozen=True)
class Identity:
    """What a result is valid for."""

    commit: str | None
    device: str | None
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        return {"commit": self.commit, "device": self.device, "dry_run": self.dry_run}

    def admits(self, found: Mapping[str, Any]) -> bool:
        """Whether a result that says what it is valid for is valid here."""
        is_clean = self.commit is not None and not self.commit.endswith("-dirty")
        return is_clean and all(found.get(key) == own for key, own in self.as_dict().items())


class Runner:
    """Runs parts until the budget is used up.

    Each part leaves `NAME.log`, all that it printed, and `NAME.json`, its result.

    Args:
        output: folder of the results.
        identity: what they are valid for.
        budget: seconds for everything.
        earlier: folders in which results of earlier runs are looked for, besides `output`.
    """

    def __init__(
        self, output: Path, identity: Identity, budget: float, earlier: Sequence[Path] = ()
    ) -> None:
        self.output = output
        self.identity = identity
        self.deadline = time.monotonic() + budget
        self._folders = (output, *earlier)

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, part: Part) -> dict[str, Any]:
        """Runs a part, unless an earlier result is valid for this commit and device."""
        found = self.known(part)
        if found is not None:
            return found | {"resumed": True}
        if part.missing:
            return {"part": part.name, "status": "missing", "seconds": 0.0, "result": None}
        if self.left < part.least:
            return {"part": part.name, "status": "no time", "seconds": 0.0, "result": None}
        return self._run(part)

    def known(self, part: Part) -> dict[str, Any] | None:
        """The result of an earlier run, if it passed and is valid here."""
        for folder in self._folders:
            found = read_json(folder / f"{part.name}.json")
            if self.identity.admits(found) and found.get("status") == "passed":
                return found
        return None

    def _run(self, part: Part) -> dict[str, Any]:
        """Runs a part in a process, stopped at its limit or at the end of the budget."""
        limit = max(1.0, min(part.limit, self.left))
        log, kernels = self.output / f"{part.name}.log", compiled_kernels()
        start = time.monotonic()
        arguments = part.command(self.identity.dry_run, self.output)
        code = run_module(part.module, arguments, log, limit, part.variables)
        status = {0: "passed", None: f"stopped after {limit:.0f} s"}.get(code, "failed")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = self.identity.as_dict() | {
            "part": part.name,
            "status": status,
            "exit_status": code,
            "seconds": round(time.monotonic() - start, 1),
            "result": last_json(lines),
            "early": bool(part.variables),
            "compiled": sorted(compiled_kernels() - kernels),
            "output": [line for line in lines if not line.startswith("{")][-_OUTPUT_LINES:],
            "date": now(),
        }
        (self.output / f"{part.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        return found


def last_json(lines: Sequence[str]) -> Any:
    """The last line of JSON that a benchmark printed; None if there is none."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def now() -> str:
    """The time, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")
