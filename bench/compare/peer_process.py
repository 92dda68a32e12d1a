"""Another engine as a child process with its own Python environment.

A request and its answer are one line of JSON each. Between requests the child is stopped by a
signal, so that its threads take no processor time from the other contenders.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class NotAvailable(RuntimeError):
    """The peer cannot run; the message says why."""


class Peer:
    """A child process that runs one of the `peer_*.py` scripts.

    Args:
        python: interpreter of the environment that has the engine.
        script: run by that interpreter; it must not import anything of this repository.
        settings: what the script needs to start; passed as JSON.

    Raises:
        NotAvailable: it did not start; the message is its last line of output.
    """

    def __init__(self, python: str, script: Path, settings: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115 (until close)
        try:
            self._process = subprocess.Popen(
                [python, str(script), json.dumps(dict(settings))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                start_new_session=True,
                # Modules in the folder of the script must not hide packages of the same name.
                env=os.environ | {"PYTHONSAFEPATH": "1"},
            )  # fmt: skip
        except OSError as error:
            raise NotAvailable(f"{python} does not run: {error}") from error
        self.version = str(self._answer()["version"])
        self._signal(signal.SIGSTOP)

    def write(self, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        """The greedy continuation of every prompt, of exactly `num_tokens` ids.

        Raises:
            NotAvailable: the child has ended.
        """
        if self._process.poll() is not None:
            raise NotAvailable("the child has ended")
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        request = {"prompts": list(prompts), "num_tokens": num_tokens}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        written = self._answer()["tokens"]
        self._signal(signal.SIGSTOP)
        return [list(ids) for ids in written]

    def is_stopped(self) -> bool:
        """Whether the child is stopped by a signal."""
        status = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        return status.rpartition(")")[2].split()[0] == "T"

    def close(self) -> None:
        """Ends the child and everything it started."""
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise NotAvailable(self._last_line())
        return dict(json.loads(line))

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with status {self._process.returncode}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
