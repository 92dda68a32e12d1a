"""Where results may go: files of every kind."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import InputLine, read_lines
from rsd_engine.cli.generate.sinks import open_sink
from tests.cli.conftest import Rsd, write_jsonl

LINE = InputLine(1, b'{"prompt": "p"}')


def write_one(path: Path) -> None:
    with closing(open_sink(path, "s", [LINE], overwrite=True)) as sink:
        assert sink.done == frozenset()
        sink.append(LINE, {"text": "ü"})
        sink.finish()


def make(kind: str, path: Path) -> Path:
    """A file of some kind that results cannot be written to."""
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "pipe without a reader":
        os.mkfifo(path)
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "in a file":
        path.write_text("")
        return path / "r.jsonl"
    elif kind == "in no folder":
        return path / "r.jsonl"
    elif kind == "too long":
        return path / ("r" * 300)
    elif kind == "disk":
        try:
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(250, 250))
        except PermissionError:
            pytest.skip("only root makes block devices")
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("folder", "it is a folder; give a file"),
        ("socket", "it is a socket; give a file"),
        ("disk", "it is a disk; give a file"),
        ("pipe without a reader", "nobody reads this pipe; start its reader first"),
        ("loop of links", "Too many levels of symbolic links"),
        ("in a file", "Not a directory"),
        ("in no folder", "No such file or directory"),
        ("too long", ""),
    ],
)
def test_what_cannot_hold_results_is_refused(kind: str, why: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=f"cannot use .* for results: .*{why}"):
        open_sink(path, "s", [LINE], overwrite=True)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_exit_code_1(
    code: int, rsd: Rsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", ["nope"])
    real = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if str(path).endswith("r.jsonl"):
            raise OSError(code, os.strerror(code))
        return real(path, flags, *mode)

    monkeypatch.setattr("os.open", refuse)
    result = rsd("generate", "--target=/no/such/model", "-i", questions, "-o", tmp_path / "r.jsonl")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: cannot use ") and line.endswith(os.strerror(code))


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_a_device(linked: bool, tmp_path: Path) -> None:
    path = Path(os.devnull)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(os.devnull)
    write_one(path)
    assert path.is_char_device() and path.is_symlink() == linked


def test_a_device_that_is_full_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    with pytest.raises(OSError, match="cannot write to /dev/full: No space left on device"):
        write_one(Path("/dev/full"))


def test_a_pipe_that_is_read_gets_the_results(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_one(path)
    assert json.loads(os.read(reader, 1000))["text"] == "ü"
    with closing(open_sink(path, "s", [LINE], overwrite=False)) as sink:
        os.close(reader)
        with pytest.raises(OSError, match="cannot write to .*pipe: Broken pipe"):
            sink.append(LINE, {"text": "ü"})


def test_a_slow_reader_is_waited_for(tmp_path: Path) -> None:
    """The pipe is opened without waiting, but written with."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    text = "x" * 300_000  # more than a pipe holds
    with closing(open_sink(path, "s", [LINE], overwrite=False)) as sink:
        writer = threading.Thread(target=sink.append, args=(LINE, {"text": text}))
        writer.start()
        data = b""
        while not data.endswith(b"\n"):
            data += os.read(reader, 65536)
        writer.join()
    os.close(reader)
    assert json.loads(data)["text"] == text


def test_an_endless_input_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot read /dev/zero: it is a device; give a file"):
        read_lines(Path("/dev/zero"))


def test_two_runs_on_one_file(rsd: Rsd, tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", ["nope"])
    output = tmp_path / "r.jsonl"
    args = ["generate", "--target=/no/such/model", "-i", questions, "-o", output]
    with closing(open_sink(output, "s", [LINE], overwrite=False)) as first:
        first.append(LINE, {"error": "x"})
        before = output.read_bytes()
        for more in ([], ["--overwrite"]):
            second = rsd(*args, *more)
            assert second.exit_code == 2
            assert re.fullmatch(
                r"error: .*r\.jsonl is being written by .*; wait until .*\n", second.stderr
            )
        assert output.read_bytes() == before
        first.finish()
    assert rsd(*args).exit_code == 1  # its one line is bad, and recorded


def test_a_dash_is_stdout(rsd: Rsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    questions = write_jsonl(tmp_path / "q.jsonl", ["nope"])
    result = rsd("generate", "--target=/no/such/model", "-i", questions, "-o", "-")
    assert json.loads(result.stdout)["error"].startswith("not JSON")
    assert [item.name for item in tmp_path.iterdir()] == ["q.jsonl"]
