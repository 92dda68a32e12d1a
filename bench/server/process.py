"""A process of `rsd serve` with the demo family."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rsd_engine.demo import ROLES, checkpoint_dir

_ADDRESS = re.compile(r"serving \S+ at (http://\S+)")


@dataclass(frozen=True)
class Server:
    """A process that listens."""

    url: str
    pid: int

    def processor_seconds(self) -> float:
        """What all its threads have taken so far."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        taken = [(thread / "schedstat").read_text().split()[0] for thread in threads]
        return sum(map(int, taken)) / 1e9


@contextmanager
def serving(*, slots: int, queue: int, threads: int) -> Iterator[Server]:
    """The process, which has ended when the block has.

    Args:
        slots: of its engine.
        queue: samples that may wait.
        threads: for its sums.

    Raises:
        RuntimeError: it did not start; the message has its last line.
    """
    models = [f"--{role}={checkpoint_dir(role)}" for role in ROLES]
    options = [f"--max-num-seqs={slots}", f"--max-queue={queue}", "--port=0"]
    command = [sys.executable, "-m", "rsd_engine.cli", "serve", *models, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out, subprocess.Popen(command, env=environment, stderr=out) as made:
            try:
                yield Server(_wait_for_address(made, log), made.pid)
            finally:
                made.terminate()


def _wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    while True:
        ended = process.poll() is not None
        text = log.read_text()
        if found := _ADDRESS.search(text):
            return found[1]
        if ended:
            raise RuntimeError(f"rsd serve did not start: {text.strip().splitlines()[-1:]}")
        time.sleep(0.05)
