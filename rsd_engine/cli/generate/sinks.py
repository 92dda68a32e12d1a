"""Where results go: a file from which a run can be resumed, or a stream."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import InputLine
from rsd_engine.cli.generate.records import GENERATED
from rsd_engine.cli.results.locked_file import opening
from rsd_engine.cli.results.result_line import encode_result
from rsd_engine.cli.results.results_file import ResultsFile

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a disk"))


class Sink(Protocol):
    """Takes the results of a run, one by one."""

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the lines that have a result from an earlier run."""

    def append(self, line: InputLine, record: dict[str, Any]) -> None:
        """Writes one result at once."""

    def finish(self) -> None:
        """Ends a run that has come to its end."""

    def close(self) -> None:
        """Lets go of the file, however the run ended."""


def open_sink(
    output: Path | None, settings: str, lines: Sequence[InputLine], *, overwrite: bool
) -> Sink:
    """Opens `output`, or stdout for None.

    Only a regular file is ever resumed, replaced or removed. A pipe or a device, such as /dev/null,
    is written like stdout.

    Raises:
        UsageError: it is nothing that results can be written to, or no results file.
        OSError: a results file cannot be put in order.
    """
    if output is None:
        return Stdout(settings)
    mode = stat.S_IFREG  # to be made, if it is not there; its folder may be missing
    with opening(output), suppress(FileNotFoundError):
        mode = output.stat().st_mode
    if stat.S_ISREG(mode):
        return ResultsFile(output, GENERATED, settings, lines, overwrite=overwrite)
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise UsageError(f"cannot use {output} for results: it is {kind}; give a file")
    return Special(output, settings)


class Stdout:
    """Results on stdout."""

    done: frozenset[int] = frozenset()

    def __init__(self, settings: str) -> None:
        self._settings = settings

    def append(self, line: InputLine, record: dict[str, Any]) -> None:
        sys.stdout.buffer.write(encode_result(GENERATED, line, self._settings, record))
        sys.stdout.buffer.flush()

    def finish(self) -> None:
        return

    def close(self) -> None:
        return


class Special:
    """Results in a pipe or a device.

    Raises:
        UsageError: it cannot be opened, or is a pipe that nobody reads.
    """

    done: frozenset[int] = frozenset()

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._settings = settings
        with opening(path):
            try:
                # Opening a pipe that nobody reads would wait for its reader, maybe for ever.
                self._file = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError as error:
                if error.errno == errno.ENXIO and path.is_fifo():
                    error.strerror = "nobody reads this pipe; start its reader first"
                raise
        os.set_blocking(self._file, True)

    def append(self, line: InputLine, record: dict[str, Any]) -> None:
        data = memoryview(encode_result(GENERATED, line, self._settings, record))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise OSError(f"cannot write to {self._path}: {error.strerror}") from None

    def finish(self) -> None:
        return

    def close(self) -> None:
        os.close(self._file)
