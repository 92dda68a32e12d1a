"""Runs a module in a process that has imported everything before it begins.

To import torch and transformers takes seconds, which each part of a run would pay. So parts are
forked from one process that has imported them; nothing imported there may use CUDA, since a
process forked afterwards cannot.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# Not the modules that are run: they would then be there twice.
IMPORTED_AHEAD = (
    "rsd_engine.engine.engine",
    "rsd_engine.doctor",
    "bench.kernels.model_ops",
    "bench.kernels.overlap",
    "bench.loop.device_loop",
    "bench.loop.batching",
)
_PATIENCE = 120  # seconds to import everything, from a disk that was never read
_TO_DUMP, _TO_END = 2.0, 5.0  # seconds for the traces before a process is stopped, and to stop it


def run_module(
    module: str, arguments: Sequence[str], log: Path, limit: float, variables: Mapping[str, str]
) -> int | None:
    """Runs `python -m module arguments`; everything it prints goes into a file.

    Shortly before the limit it writes where every thread is, as it does when it crashes. Then it is
    stopped, with all that it has started.

    Args:
        module: none of `IMPORTED_AHEAD`.
        log: the file.
        limit: seconds.
        variables: of the environment, beside those of this process.

    Returns:
        Exit status, negative for a signal; None if it was stopped.
    """
    arguments_of_child = (module, list(arguments), log, limit, dict(os.environ) | dict(variables))
    process = _context().Process(target=_become, args=arguments_of_child)
    process.start()
    process.join(limit)
    if process.exitcode is not None:
        return process.exitcode
    _stop(process)
    return None


def import_ahead() -> None:
    """Makes the process that parts are forked from; else the first part would, in its own time."""
    process = _context().Process(target=_check_imports)
    process.start()
    process.join(_PATIENCE)


@functools.cache
def _context() -> ForkServerContext:
    """Processes find the packages of this checkout before any that are installed."""
    paths = [str(ROOT / "kernels"), str(ROOT)]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, before]))
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # then to look for a GPU does not use CUDA
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED_AHEAD))
    return context


def _check_imports() -> None:
    """Says what cannot be imported; a part that can do without is run all the same."""
    for name in IMPORTED_AHEAD:
        importlib.import_module(name)


def _become(
    module: str, arguments: list[str], log: Path, limit: float, variables: dict[str, str]
) -> None:
    """Turns a new process into `python -m module`."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if torch.cuda._is_in_bad_fork():  # something imported ahead has used CUDA
        print("started anew: CUDA had been used before this process was forked", flush=True)
        os.execv(sys.executable, [sys.executable, "-u", "-m", module, *arguments])
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.1, limit - _TO_DUMP))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _stop(process: ForkServerProcess) -> None:
    """Stops a process and all that it has started; first by SIGTERM, so that it can do so."""
    assert process.pid is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.join(_TO_END)
    if process.exitcode is None:  # it waits for the driver, which nothing ends
        atexit.register(os._exit, 1)  # instead of waiting for it, too
