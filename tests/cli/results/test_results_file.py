"""The file of results: what it survives, and what it refuses to go on from."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import InputLine
from rsd_engine.cli.generate.records import GENERATED
from rsd_engine.cli.results import results_file
from rsd_engine.cli.results.results_file import ResultsFile

LINES = [InputLine(number, f'{{"prompt": "p{number}"}}'.encode()) for number in (1, 2, 4, 5)]


def filled(path: Path, order: tuple[int, ...], settings: str = "s") -> bytes:
    """A run that stopped after the results of `order`."""
    with closing(ResultsFile(path, GENERATED, settings, LINES)) as results:
        for position in order:
            results.append(LINES[position], {"text": "ü" * position})
    return path.read_bytes()


def done(path: Path, lines: list[InputLine] = LINES, **options: Any) -> frozenset[int]:
    """The lines that a run finds answered."""
    with closing(ResultsFile(path, GENERATED, "s", lines, **options)) as results:
        return results.done


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.jsonl"


@pytest.fixture
def half(path: Path) -> Iterator[ResultsFile]:
    """A run that has its last two results, not in the order of the input."""
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        results.append(LINES[3], {"text": "d"})
        results.append(LINES[2], {"text": "c"})
        yield results


def test_every_result_is_on_disk_at_once(path: Path) -> None:
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        for count, line in enumerate(LINES, start=1):
            results.append(line, {"text": "a"})
            assert path.read_text().count("\n") == count


def test_goes_on_and_ends_in_the_order_of_the_input(path: Path) -> None:
    filled(path, (3, 0))
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        assert results.done == {5, 1}
        results.append(LINES[2], {"text": "x"})
        results.append(LINES[1], {"text": "y"})
        results.finish()
    assert numbers(path) == [1, 2, 4, 5]
    assert done(path) == {1, 2, 4, 5}
    assert [item.name for item in path.parent.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize("cut", [1, 2, 9, 10, 40])
def test_a_torn_last_line_is_dropped(
    path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = filled(path, (0, 1))
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + cut])
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        assert results.done == {1}
        assert path.read_bytes() == whole[:first]
        assert "the last line was cut off" in capsys.readouterr().err
        results.append(LINES[1], {"text": "ü"})
    assert path.read_bytes() == whole


def test_failed_lines_are_tried_again(path: Path) -> None:
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        results.append(LINES[0], {"error": "not JSON"})
        results.append(LINES[1], {"text": "a"})
        results.finish()
    repaired = [InputLine(1, b'{"prompt": "now JSON"}'), *LINES[1:]]
    assert done(path, repaired) == {2}
    assert numbers(path) == [2]


def test_a_line_answered_twice_counts_once(path: Path) -> None:
    whole = filled(path, (0, 1))
    path.write_bytes(whole + whole)
    assert done(path) == {1, 2}
    assert path.read_bytes() == whole


def test_a_changed_input_line_is_refused(path: Path) -> None:
    before = filled(path, (0, 1))
    changed = [LINES[0], InputLine(2, b'{"prompt": "other"}')]
    with pytest.raises(UsageError, match="line 2 of the input has changed since .*r.jsonl"):
        ResultsFile(path, GENERATED, "s", changed)
    with pytest.raises(UsageError, match="line 2 of the input has changed"):
        ResultsFile(path, GENERATED, "s", LINES[:1])
    assert path.read_bytes() == before


def test_other_settings_are_refused_and_overwritten_only_by_results(path: Path) -> None:
    before = filled(path, (3, 0))
    with pytest.raises(UsageError, match="written with other models or settings"):
        ResultsFile(path, GENERATED, "t", LINES)
    with closing(ResultsFile(path, GENERATED, "t", LINES, overwrite=True)) as results:
        assert results.done == frozenset()
        assert path.read_bytes() == before  # the models may not even load
        results.append(LINES[1], {"text": "y"})
        assert numbers(path) == [2]
        results.append(LINES[0], {"text": "x"})
        results.finish()
    assert numbers(path) == [1, 2]


def test_overwriting_with_nothing_leaves_nothing(path: Path) -> None:
    filled(path, (3, 0))
    with closing(ResultsFile(path, GENERATED, "t", [], overwrite=True)) as results:
        results.finish()
    assert path.read_bytes() == b""


FOREIGN = [
    b'{"prompt": "a"}\n', b"notes", b"notes\nmore\n", b"\n", b"[1]\n", b"\0" * 1000, b"\xff\xfe\n",
    b'{"line": ["x"], "input": "i", "settings": "s"}\n', b'{"line": true}\n', b'{"line": 1}\n',
    b'{"line": 1, "input": {}, "settings": "s"}\n', b'{"line": 1e3, "input": "i"}\n', b"{" * 90000,
    b'{"line": ' + b"[" * 90000 + b"\n", b'{"line": ' + b"9" * 9000 + b"}\n", b'{"error": "x"}\n',
]  # fmt: skip


@pytest.mark.parametrize("data", FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(tmp_path: Path, data: bytes, overwrite: bool) -> None:
    """Neither one that begins so, nor one that goes on so."""
    path = tmp_path / "notes.txt"
    for before, line in ((b"", 1), (filled(tmp_path / "r.jsonl", (0,)), 2)):
        path.write_bytes(before + data)
        status = path.stat()
        with pytest.raises(UsageError, match=f"line {line}, is not a result .*nothing was changed"):
            ResultsFile(path, GENERATED, "s", LINES, overwrite=overwrite)
        assert path.read_bytes() == before + data
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


def test_a_huge_file_without_lines_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    with path.open("wb") as file:
        file.truncate(1 << 42)  # takes no room on the disk
    with pytest.raises(UsageError, match="line 1, is not a result"):
        ResultsFile(path, GENERATED, "s", LINES)


def test_half_a_surrogate_pair_stays_json(path: Path) -> None:
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        results.append(LINES[0], {"id": "\ud800é", "text": ""})
    assert json.loads(path.read_text())["id"] == "\ud800é"


# ------------------------------------------------------------------ one run at a time


@pytest.mark.parametrize("name", ["same", "symlink", "hard link"])
def test_a_second_run_is_told_who_writes_the_file(half: ResultsFile, name: str) -> None:
    path = half.path.with_name("other") if name != "same" else half.path
    if name == "symlink":
        path.symlink_to(half.path)
    elif name == "hard link":
        path.hardlink_to(half.path)
    before = half.path.read_bytes()
    holder = rf"process {os.getpid()}, which runs since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    if not Path("/proc/locks").exists():
        holder = "another process"
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"is being written by {holder}"):
            ResultsFile(path, GENERATED, "s", LINES, overwrite=overwrite)
    assert half.path.read_bytes() == before


def test_the_lock_of_a_killed_process_is_gone(path: Path) -> None:
    before = filled(path, (0,))
    code = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); "
    code += "print(flush=True); sys.stdin.read()"
    args = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match=f"process {other.pid}|another process"):
            ResultsFile(path, GENERATED, "s", LINES)
        other.kill()
    assert done(path) == {1}
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_system_without_locks_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert done(path) == frozenset()
    assert "r.jsonl cannot be locked on this file system" in capsys.readouterr().err


def test_the_lock_outlasts_replacing_the_file_and_ends_with_it(path: Path) -> None:
    filled(path, (3, 0))
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        results.finish()  # moves a sorted file over the old one
        with pytest.raises(UsageError, match="is being written by"):
            ResultsFile(path, GENERATED, "s", LINES)
    assert done(path) == {1, 5}


def test_waiting_for_a_file_that_is_replaced_ends_at_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that opened the old file just before it was replaced must not write into it."""
    filled(path, (3, 0))
    real = os.open
    opened: list[int] = []

    def replaced_meanwhile(name: Any, flags: int, mode: int = 0o777) -> int:
        file = real(name, flags, mode)
        if not opened:
            opened.append(file)
            fresh = path.with_name("fresh")
            fresh.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
            fresh.replace(path)
        return file

    monkeypatch.setattr("os.open", replaced_meanwhile)
    assert done(path) == {5}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "r.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)  # to be made
    filled(link, (3, 0))
    target.chmod(0o640)
    with closing(ResultsFile(link, GENERATED, "s", LINES)) as results:
        results.finish()
    assert link.is_symlink() and numbers(target) == [1, 5]
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["link.jsonl", "r.jsonl", "real"]


def test_what_a_killed_run_left_half_sorted_is_replaced(path: Path) -> None:
    filled(path, (3, 0))
    path.with_name(".r.jsonl.new").write_bytes(b"half of it")
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        results.finish()
    assert numbers(path) == [1, 5]
    assert [item.name for item in path.parent.iterdir()] == ["r.jsonl"]


# ------------------------------------------------------------------ disks and folders


def test_a_full_disk_keeps_whole_lines(half: ResultsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    before = half.path.read_bytes()
    real = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        room = len(before) + 10 - at
        if room <= 0:
            raise OSError(28, "No space left on device")
        return real(file, data[:room], at)

    monkeypatch.setattr(results_file.os, "pwrite", full)
    with pytest.raises(OSError, match=r"cannot write .*: No space left .* keeps its 2 results"):
        half.append(LINES[0], {"text": "a"})
    assert half.path.read_bytes() == before
    monkeypatch.undo()
    half.append(LINES[0], {"text": "a"})
    assert numbers(half.path) == [5, 4, 1]


def test_a_real_limit_of_the_system_keeps_whole_lines(half: ResultsFile) -> None:
    before = half.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match="cannot write .*r.jsonl: .* keeps its 2 results"):
            half.append(LINES[0], {"text": "a" * 100})
        with pytest.raises(OSError, match="cannot write"):
            half.append(LINES[0], {"text": "a" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert half.path.read_bytes() == before
    half.finish()
    assert numbers(half.path) == [4, 5]


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "replace"])
def test_results_that_cannot_be_sorted_are_all_there(
    half: ResultsFile, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a read-only folder, a mounted file: whatever fails while it is replaced."""
    before = half.path.read_bytes()

    def fail(*args: Any) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(results_file.os, call, fail)
    with pytest.raises(OSError, match=r"cannot sort .*: Read-only .* keeps its 2 results"):
        half.finish()
    monkeypatch.undo()
    assert half.path.read_bytes() == before
    assert [item.name for item in half.path.parent.iterdir()] == ["r.jsonl"]
    half.finish()
    assert numbers(half.path) == [4, 5]


@pytest.mark.parametrize("lost", ["file", "folder"])
@pytest.mark.parametrize("then", ["append", "finish"])
def test_results_of_a_removed_file_are_saved(
    tmp_path: Path, lost: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "r.jsonl"
    before = filled(path, (3, 0))
    with closing(ResultsFile(path, GENERATED, "s", LINES)) as results:
        path.unlink()
        if lost == "folder":
            folder.rmdir()
        with pytest.raises(OSError, match=r"was removed .*; the . results are in ") as caught:
            results.append(LINES[1], {"text": "ü"}) if then == "append" else results.finish()
    [saved] = (folder if lost == "file" else tmp_path).iterdir()
    assert str(saved) in str(caught.value)
    assert saved.read_bytes().startswith(before)
    assert numbers(saved) == ([5, 1, 2] if then == "append" else [5, 1])


@pytest.mark.parametrize("then", ["append", "finish"])
def test_a_file_that_was_replaced_or_changed_is_left_alone(half: ResultsFile, then: str) -> None:
    path = half.path
    moved = path.rename(path.with_name("moved.jsonl"))
    path.write_bytes(b"another")
    act = half.finish if then == "finish" else lambda: half.append(LINES[0], {"text": "a"})
    with pytest.raises(OSError, match="was moved or replaced while its run went on"):
        act()
    assert path.read_bytes() == b"another"
    moved.rename(path)
    with path.open("ab") as file:
        file.write(b"and more")
    with pytest.raises(OSError, match="was changed by something else"):
        half.finish()
    assert path.read_bytes().endswith(b"and more")
