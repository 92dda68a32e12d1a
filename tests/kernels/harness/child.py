"""Runs a file of Triton checks in a process of its own.

`TRITON_INTERPRET` is read when a kernel is decorated, so one process either interprets kernels on
the CPU or compiles them for a GPU, never both. Such a file is called `*_checks.py`, which
pytest does not collect by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.fake_cuda.build import build
from tests.kernels.harness.ahead import Ahead, Checks

ROOT = Path(__file__).resolve().parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_ENVIRONMENT = dict(os.environ)  # tests that run meanwhile change it


def run_checks(name: str, *, interpreted: bool, fake_driver: bool = False) -> None:
    """Runs tests/`name` and fails with its report if any of it fails, or none ran."""
    AHEAD.finish(Checks(name, interpreted, fake_driver))


def _run(checks: Checks) -> None:
    variables = {key: value for key, value in _ENVIRONMENT.items() if key != "TRITON_INTERPRET"}
    paths = [str(ROOT / "kernels"), str(ROOT)]
    variables["PYTHONPATH"] = os.pathsep.join([*paths, _ENVIRONMENT.get("PYTHONPATH", "")])
    if checks.interpreted:
        variables |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "RSD_CPU_LIBRARY": "0"}
    with TemporaryDirectory() as folder:
        if checks.fake_driver:
            build(Path(folder))
            variables |= {"LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder}
            variables |= {"TRITON_CACHE_DIR": f"{folder}/cache"}
            variables |= {"OMP_NUM_THREADS": "1", "RSD_TEST_PROBLEMS": "8"}
        _run_pytest(checks, variables)


def _run_pytest(checks: Checks, variables: dict[str, str], timeout: float = 280) -> None:
    name, interpreted, _ = checks
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    # A GPU is seldom at hand: one run there shall show more than the first failure.
    command += ["--maxfail", "1" if interpreted else "10", "--tb", "short"]
    if not interpreted and torch.cuda.is_available() and util.find_spec("xdist") is not None:
        command += ["-n", "4"]  # most of the time is compiling
    done = subprocess.run(
        [*command, str(ROOT / "tests" / name)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


AHEAD = Ahead(_run)  # of this session
