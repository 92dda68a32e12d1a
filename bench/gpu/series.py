"""What `bench.gpu.first` and `bench.gpu` share: options, and what is told of each part."""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu import bars
from bench.gpu.child import import_ahead
from bench.gpu.kernel_cache import use_cache
from bench.gpu.parts import Part, early_is_proven
from bench.gpu.runner import Identity, Runner, now
from bench.lib import report

RESULTS = Path("gpu-results")
# Lines and letters of a part's output that are printed; all of it is in its log.
_SHOWN, _SHOWN_OF_FAILURE = (14, 900), (40, 2400)
_TALK = "rsd: "  # what the engine says about itself
_GOOD = ("passed", "missing")


def add_options(parser: argparse.ArgumentParser, parts: Iterable[str], budget: float) -> None:
    """Options of both commands."""
    parser.add_argument("--output", type=Path, help="folder of all that is found")
    parser.add_argument("--archive", type=Path, help="one file with all of that folder")
    parser.add_argument("--budget", type=float, default=budget, help="seconds for everything")
    parser.add_argument("--commit", help="commit, if there is no .git (or set RSD_COMMIT)")
    parser.add_argument("--parts", nargs="+", choices=list(parts))
    parser.add_argument("--dry-run", action="store_true", help="run tiny sizes on a CPU")


class Series:
    """One run of several parts.

    After each part, `OUTPUT/summary.json` says what was found so far, and the archive is packed
    anew: whatever ends the run, what was found until then is there.

    Args:
        name: of the command.
        options: see `add_options`; with an `output`.
        earlier: folders with results that are used where they are valid here.

    Attributes:
        cache: what is known of the cache of compiled kernels.
        results: of the parts so far.
    """

    def __init__(
        self, name: str, options: argparse.Namespace, earlier: Sequence[Path] = ()
    ) -> None:
        self._start = time.monotonic()
        self._name = name
        self._options = options
        options.output.mkdir(parents=True, exist_ok=True)
        commit = options.commit or os.environ.get("RSD_COMMIT") or report.commit()
        self._machine = report.machine() | {"commit": commit, "cuda": torch.version.cuda}
        identity = Identity(commit, self._machine["device"], options.dry_run)
        self.runner = Runner(options.output, identity, options.budget, earlier)
        self.cache = use_cache()
        import_ahead()
        self.results: list[dict[str, Any]] = []
        print(json.dumps(self._machine | {"cache": self.cache}), flush=True)

    def run(self, part: Part) -> None:
        """Runs a part, if it is asked for, and tells what it found."""
        if self._options.parts is not None and part.name not in self._options.parts:
            return
        found = self.runner.run(part.early() if early_is_proven(self.results) else part)
        self.results.append(found)
        _show(found)
        self._write(self.summary())
        print(json.dumps({"part": found["part"], **_in_short(found)}), flush=True)

    def end(self, known: Mapping[str, Any]) -> int:
        """Prints the bars and, in one line, how all parts went; returns the exit status.

        Args:
            known: results of parts that an earlier run found, by name.
        """
        judged = bars.evaluate({**known, **{r["part"]: r["result"] for r in self.results}})
        summary = self.summary()
        self._write(summary | {"bars": [bar.to_dict() for bar in judged]})
        print(f"\n{bars.table(judged)}\n")
        print(json.dumps(summary), flush=True)
        return 1 if any(found["status"] not in _GOOD for found in self.results) else 0

    def summary(self) -> dict[str, Any]:
        """How all parts went, without their results."""
        return {
            "bench": self._name,
            "date": now(),
            "dry_run": self._options.dry_run,
            "machine": self._machine,
            "cache": self.cache,
            "seconds": round(time.monotonic() - self._start, 1),
            "budget": self._options.budget,
            "early_is_proven": early_is_proven(self.results),
            "parts": {found["part"]: _in_short(found) for found in self.results},
        }

    def _write(self, summary: Mapping[str, Any]) -> None:
        text = json.dumps(summary, indent=1) + "\n"
        (self._options.output / "summary.json").write_text(text, encoding="utf-8")
        if self._options.archive is not None:
            pack(self._options.output, self._options.archive)


def pack(folder: Path, archive: Path) -> None:
    """Packs a folder into one file."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    made = archive.with_name(archive.name + ".part")
    with tarfile.open(made, "w:gz") as packed:
        packed.add(folder, arcname=folder.name)
    made.replace(archive)  # whoever is stopped meanwhile keeps the one before


def _in_short(found: Mapping[str, Any]) -> dict[str, Any]:
    chosen = ("status", "seconds", "resumed", "early")
    compiled = len(found.get("compiled", ()))
    return {key: found[key] for key in chosen if found.get(key)} | {"compiled": compiled}


def _show(found: Mapping[str, Any]) -> None:
    """Prints how a part went, and the end of what it printed."""
    again = ", from an earlier run" if found.get("resumed") else ""
    print(f"\n== {found['part']}: {found['status']}, {found['seconds']} s{again}")
    if not found.get("resumed"):
        lines, letters = _SHOWN if found["status"] in _GOOD else _SHOWN_OF_FAILURE
        said = [line for line in found.get("output", []) if not line.startswith(_TALK)]
        print("\n".join(said[-lines:])[-letters:], flush=True)
