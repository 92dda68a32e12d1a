"""A process of `rsd serve`: its address, what it holds, its end."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from rsd_engine.demo import ROLES, checkpoint_dir

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0  # seconds, for a start or for what is to become so


@dataclass(frozen=True)
class Held:
    """What the process holds at one moment."""

    threads: int
    files: int
    rss: int  # bytes


class ServerProcess:
    """`rsd serve` of the demo family, with one thread for its sums.

    Args:
        options: of the command.
    """

    def __init__(self, *options: str) -> None:
        models = [f"--{role}={checkpoint_dir(role)}" for role in ROLES]
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        self.lines: list[str] = []  # of its stderr
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "rsd_engine.cli", "serve", *models,
                "--served-model-name=demo", "--port=0", *options,
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._wait_for_address()

    def held(self) -> Held:
        """What is left when the last connections have closed."""
        time.sleep(1)
        proc = Path(f"/proc/{self.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return Held(
            threads=len(os.listdir(proc / "task")),
            files=len(os.listdir(proc / "fd")),
            rss=pages * resource.getpagesize(),
        )

    def load(self) -> dict[str, float]:
        """Samples that run, samples that wait, share of the pages in use."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.findall(r"^rsd:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return {name: float(value) for name, value in found if name in names}

    def wait_for_samples(self, count: int) -> None:
        """Until so many run or wait."""
        self._wait(
            lambda load: load["num_requests_running"] + load["num_requests_waiting"] >= count
        )

    def wait_until_idle(self) -> None:
        """Until nothing runs or waits, and no page is held."""
        self._wait(lambda load: not any(load.values()))

    def _wait(self, reached: Callable[[dict[str, float]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached(load := self.load()):
            assert time.monotonic() < deadline, load
            time.sleep(0.02)

    def stop(self, seconds: float) -> int:
        """Asks it to stop; its exit code, which must come within so many seconds."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.removeprefix("rsd: ").rstrip())

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            for line in self.lines:
                if found := re.search(r"serving demo at (http://\S+)", line):
                    return found[1]
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.02)


@contextmanager
def server_process(*options: str) -> Iterator[ServerProcess]:
    """The process, which has ended when the block has."""
    server = ServerProcess(*options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
