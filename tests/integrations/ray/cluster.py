"""A small Ray cluster on this machine, and the killing of its workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from rsd_engine import logs
from rsd_kernels import launch

PYTHONPATH = os.pathsep.join(str(Path(str(m.__file__)).parents[1]) for m in (logs, launch))
ACTOR = "ray::MapWorker(MapBatches(Worker))"
REPLICA = "ray::ServeReplica:default:rsd"


@contextmanager
def ray_cluster(num_cpus: int) -> Iterator[None]:
    """One node, without a dashboard; `num_cpus` is what Ray counts, not what there is."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: the names of sockets have a limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home directory
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        try:
            ray.init(
                num_cpus=num_cpus,
                object_store_memory=80 << 20,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": PYTHONPATH}},
                _temp_dir=folder,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def kill_one(title: str) -> None:
    """Kills the first of this cluster's processes whose name begins so, with SIGKILL."""
    os.kill(processes(title)[0], signal.SIGKILL)


def processes(title: str) -> list[int]:
    """Those whose name begins so, and which this process has started; a name ends in a method."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return sorted(pid for pid in found if _title(pid).startswith(title) and _is_ours(pid))


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")
    except OSError:
        return ""


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
