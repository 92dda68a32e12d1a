"""Runs chat templates in a process of their own, with limits on time, memory and output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPU_SECONDS = 2.0
MEMORY_BYTES = 512 * 2**20
MAX_CHARACTERS = 2**24  # more than any context holds

_WORKER = Path(__file__).with_name("worker.py")


class TemplateRenderer:
    """Renders conversations as transformers does, and outlives every template.

    The process starts with the first conversation, which takes about half a second, and ends with
    `close` or with this process. Threads may share a renderer.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        """The text of one conversation.

        Args:
            messages: JSON values; content is text, None, or a list of text parts.
            options: arguments of transformers' `apply_chat_template`, also JSON values.

        Raises:
            ValueError: the template fails, does not end, or takes too much memory; or a value is
                not JSON.
        """
        request = _encode({"messages": messages, "options": options})
        with self._lock:
            reply = self._ask(request)
        if "error" in reply:
            raise ValueError(f"the chat template cannot use these messages: {reply['error']}")
        return str(reply["text"])

    def close(self) -> None:
        """Ends the process; the next conversation would start another."""
        with self._lock:
            self._stop()

    def _ask(self, request: bytes) -> dict[str, Any]:
        process = self._process = self._process or _start()
        assert process.stdin is not None and process.stdout is not None
        try:
            _write(process.stdin.fileno(), request)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # an interrupt: the reply must not answer the next request
            self._stop()
            raise
        if line.endswith(b"\n"):
            return dict(json.loads(line))
        return {"error": _cause_of_death(self._stop())}

    def _stop(self) -> int:
        """Ends the process; returns its exit code, which is -N if signal N had ended it."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _write(pipe: int, data: bytes) -> None:
    """Writes all, past the buffer of the file, of which a forked child would write its copy."""
    left = memoryview(data)
    while left:
        left = left[os.write(pipe, left) :]


def _encode(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, default=_plain).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"messages, tools and chat_template_kwargs must hold JSON values: {error}"
        ) from None


def _plain(value: Any) -> Any:
    """The JSON value of a mapping, a model of pydantic, or a number or array of numpy."""
    if isinstance(value, Mapping):
        return dict(value)
    for method in ("model_dump", "tolist"):
        if callable(getattr(value, method, None)):
            return getattr(value, method)()
    raise TypeError(f"got {type(value).__name__}")


def _start() -> subprocess.Popen[bytes]:
    limits = [str(CPU_SECONDS), str(MEMORY_BYTES), str(MAX_CHARACTERS)]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        # -P: the worker's folder is no place to import from
        [sys.executable, "-P", str(_WORKER), *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )


def _cause_of_death(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"it did not end within {CPU_SECONDS:g} seconds"
    return f"the process that ran it ended with exit code {code}"
