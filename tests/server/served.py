"""`rsd serve` on the demo family, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsd_engine.demo import ROLES, checkpoint_dir

MODEL = "my-model"  # as in the docs
_SECONDS = 120.0  # to start, or to end


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves at a free port while the context is open; gives the address.

    Args:
        folder: for what the server writes to stderr.
    """
    command = [sys.executable, "-m", "rsd_engine.cli", "serve"]
    for role in ROLES:
        command += [f"--{role}", str(checkpoint_dir(role))]
    command += ["--served-model-name", MODEL, "--port", "0", "--drain-seconds", "1"]
    log = folder / "stderr.txt"
    environment = {name: value for name, value in os.environ.items() if name != "RSD_API_KEYS"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output, env=environment)
    try:
        yield _address(process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(rf"serving {MODEL} at (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text()}")
