"""The process of `rsd`: its start, its streams, its end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Metrics
from rsd_engine.cli.errors import flush
from rsd_engine.cli.generate import one
from rsd_engine.outputs import CompletionOutput, RequestOutput

ROOT = Path(__file__).resolve().parents[2]


def run(args: list[str], **streams: Any) -> subprocess.CompletedProcess[bytes]:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *args], env=environment, timeout=60, **streams)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_an_interrupted_start_is_one_line(times: int) -> None:
    """Ctrl-C while torch is imported; the second one while the first is cleaned up after.

    Once in a place where Python ignores errors."""
    code = f"""
        import os, signal, sys, weakref
        sys.argv = ["rsd", "doctor"]

        def press(left):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                if left > 1:
                    press(left - 1)

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "torch" and {times}:
                    press({times})
                elif name == "torch":  # where Python reports an error and goes on
                    kept = weakref.ref(Finder(), lambda _: press(1))

        sys.meta_path.insert(0, Finder())
        from rsd_engine.cli import main
        main()
    """
    done = run(["-c", textwrap.dedent(code)], capture_output=True)
    assert (done.returncode, done.stderr, done.stdout) == (130, b"interrupted\n", b"")


@pytest.mark.parametrize("stdout", ["full", "closed", "nobody reads it"])
def test_stdout_that_takes_nothing(stdout: str, tmp_path: Path) -> None:
    args, streams = ["-m", "rsd_engine.cli", "--version"], {"stderr": subprocess.PIPE}
    if stdout == "full":
        if not Path("/dev/full").is_char_device():
            pytest.skip("there is no /dev/full")
        with open("/dev/full", "wb") as file:
            done = run(args, stdout=file, **streams)
        assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")
    elif stdout == "closed":
        done = run(args, preexec_fn=lambda: os.close(1), **streams)
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = run(args, stdout=writer, **streams)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


def test_what_waits_for_a_full_disk_is_dropped(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as stream:
        stream.write("x")
        error = flush(stream)
        assert error is not None and error.errno == 28
        assert flush(stream) is None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "shift_jis", "utf-8", "utf-16"])
def test_json_is_json_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'é 日 \U0001f600 " \\ \x00 \ud800'
    output = CompletionOutput(0, text, (), "stop", None, ())
    result = RequestOutput("0", None, (), (output,), Metrics(), seed=1)
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding, errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", stream)
    one._print_json(result)
    stream.flush()
    # Half a surrogate pair comes as its escape, and all of the rest as it was.
    assert json.loads(written.getvalue().decode(encoding))["outputs"][0]["text"] == text
