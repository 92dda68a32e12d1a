"""Runs every test that needs a GPU: one process per file, many at once, as most time is compiling.

    python -m bench.gpu_tests [tests/kernels ...]

No benchmark may run at the same time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.lib import report
from bench.lib.options import command_parser

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests",)
_running: set[int] = set()  # process groups of tests
_NO_TESTS = 5  # exit status of pytest
_GRACE = 15  # seconds before its limit at which pytest ends by itself, and still reports
_CUT_SHORT = "session-timeout: "  # what pytest-timeout prints then
_SHOWN = 4000  # last characters of a failure that are shown


@dataclass(frozen=True)
class Failure:
    test: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """One file of tests."""

    file: str
    passed: int
    skipped: int
    failures: tuple[Failure, ...]
    seconds: float


def marked_files(folders: Sequence[str]) -> list[Path]:
    """Files with tests marked `gpu`."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("test_*.py"))]
    return [path for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]


def run_file(path: Path, limit: float) -> Outcome:
    """Runs the marked tests of one file, for at most `limit` seconds."""
    start, name = time.perf_counter(), str(path.relative_to(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=--import-mode=importlib", f"--junitxml={junit}", name]
        if limit > _GRACE:
            timeout = f"{limit - _GRACE:.0f}"
            command += [f"--session-timeout={timeout}", "-o", f"timeout={timeout}"]
        code, said = run_group(command, limit)
        seconds = time.perf_counter() - start
        said = said[-_SHOWN:].strip()
        if code is None:
            said = f"did not end in {limit:.0f} s\n{said}"
        if code not in (0, 1, _NO_TESTS) or not junit.exists():
            return Outcome(name, 0, 0, (Failure(name, said),), seconds)
        found = _read(name, ElementTree.parse(junit).getroot(), seconds)
        if _CUT_SHORT not in said:
            return found
        rest = Failure(name, f"not all tests were started in {limit - _GRACE:.0f} s")
        return replace(found, failures=(*found.failures, rest))


def run_group(command: list[str], limit: float) -> tuple[int | None, str]:
    """Runs a command; at the limit kills it and everything it started.

    Returns:
        Exit status, or None if it was killed, and its output.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    _running.add(process.pid)
    try:
        said, _ = process.communicate(timeout=limit)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        _kill(process.pid)
        said, _ = process.communicate()
        return None, said
    finally:
        _running.discard(process.pid)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _stop(*_: object) -> None:
    """When this process is stopped, a test that hangs must not keep the GPU."""
    for group in list(_running):
        _kill(group)
    raise SystemExit(128 + signal.SIGTERM)


def _read(name: str, root: ElementTree.Element, seconds: float) -> Outcome:
    cases = list(root.iter("testcase"))
    failures = tuple(
        Failure(f"{name}::{case.get('name')}", (found.text or "")[-_SHOWN:])
        for case in cases
        for found in case
        if found.tag in ("failure", "error")
    )
    skipped = sum(any(child.tag == "skipped" for child in case) for case in cases)
    return Outcome(name, len(cases) - skipped - len(failures), skipped, failures, seconds)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "bench": "gpu_tests",
        "passed": sum(outcome.passed for outcome in outcomes),
        "skipped": sum(outcome.skipped for outcome in outcomes),
        "failed": sum(len(outcome.failures) for outcome in outcomes),
        "files": [asdict(outcome) for outcome in outcomes],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu_tests", __doc__)
    parser.add_argument("paths", nargs="*", default=FOLDERS, help="folders or files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=240, help="seconds for one file")
    options = parser.parse_args(arguments)
    files = [ROOT / path for path in options.paths if path.endswith(".py")]
    files += marked_files([path for path in options.paths if not path.endswith(".py")])
    signal.signal(signal.SIGTERM, _stop)
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        outcomes = list(pool.map(lambda path: run_file(path, options.limit), files))
    rows = [
        [o.file, str(o.passed), str(len(o.failures)), str(o.skipped), f"{o.seconds:.0f}"]
        for o in outcomes
    ]
    print(report.format_table(["file", "passed", "failed", "skipped", "s"], rows))
    for failure in (f for o in outcomes for f in o.failures):
        print(f"\nfailed: {failure.test}\n{failure.message}")
    found = summary(outcomes)
    report.print_json(found)
    return 1 if found["failed"] else 0
