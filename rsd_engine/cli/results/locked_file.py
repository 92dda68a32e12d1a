"""Opens a file that only one process writes; the lock ends with the process, however it ends.

The lock is `flock` on the file itself, so nothing is left beside it, and no second name of the file
(a link) leads around it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rsd_engine.cli.errors import UsageError, print_stderr

_WRONG_NAME = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
)  # fmt: skip
_CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Makes an error of the system name the path: a UsageError, if there can be no such file."""
    try:
        yield
    except OSError as error:
        kind = UsageError if error.errno in _WRONG_NAME else OSError
        raise kind(f"cannot use {path} for results: {error.strerror}") from None


def open_locked(path: Path) -> int:
    """Opens a regular file to read and write, or creates it, and locks it until it is closed.

    Raises:
        UsageError: another process has locked it.
        OSError: it cannot be opened.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(file, path)
            if leads_to(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the run that had the lock has put a new file in its place


def lock(file: int, path: Path) -> None:
    """Locks an open file; UsageError if another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{path} is being written by {_holder(file)}; wait until that run has ended, or give "
            "another --output"
        ) from None
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        print_stderr(f"{path} cannot be locked on this file system: do not run this twice at once")


def leads_to(path: Path, file: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _holder(file: int) -> str:
    """Who has locked the file, as far as the system tells."""
    inode = f":{os.fstat(file).st_ino}"
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # number, FLOCK, ADVISORY, WRITE, pid, major:minor:inode, ...
            if fields[1] == "FLOCK" and fields[5].endswith(inode):
                pid = int(fields[4])
                return f"process {pid}, which runs since {_start_of(pid)}"
    return "another process"


def _start_of(pid: int) -> str:
    """Local time at which a process began."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    up = float(Path("/proc/uptime").read_text().split()[0])
    began = time.time() - up + int(values[19]) / os.sysconf("SC_CLK_TCK")
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
