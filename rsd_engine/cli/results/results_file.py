"""The JSONL file of results, written line by line, from which a stopped run can be resumed.

A record is one `write` of a whole line, so Ctrl-C comes before or after it, never inside. After a
crash the last line may be incomplete: it is removed and its question asked again. A record has
digests of its input line and of the settings, so a run never resumes another one. The file is
locked while a run has it, and a file that holds anything else stays as it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import print_stderr
from rsd_engine.cli.results.locked_file import leads_to, lock, open_locked, opening
from rsd_engine.cli.results.old_results import OldResults, Span, check_results, read_results
from rsd_engine.cli.results.result_line import Asked, ResultsKind, encode_result

_PIECE = 1 << 20  # bytes copied at once


class ResultsFile:
    """The results of a run, including those that the file has already.

    Args:
        path: a regular file, or a link to one; created if it does not exist.
        kind: what it holds.
        settings: digest of all settings that decide the results.
        lines: the lines of the input.
        overwrite: discard the results that the file has, as soon as there is a new one.

    Raises:
        UsageError: there can be no such file, another run writes it, or it holds something other
            than results of these settings and lines.
        OSError: the system does not let it be written.
    """

    def __init__(
        self,
        path: Path,
        kind: ResultsKind,
        settings: str,
        lines: Sequence[Asked],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self._target = Path(os.path.realpath(path))  # what is replaced: a link stays a link
        self._scratch = self._target.with_name(f".{self._target.name}.new")
        self._kind = kind
        self._settings = settings
        self._spans: dict[int, Span] = {}
        self._end = 0  # of the last record; there is more only as long as nothing is overwritten
        with opening(path):
            self._file = open_locked(self._target)
        try:
            with opening(path), open(self._file, "rb", closefd=False) as file:
                if overwrite:
                    check_results(file, path, kind)
                else:
                    inputs = {line.number: line for line in lines}
                    found = read_results(file, path, kind, settings, inputs)
            if not overwrite:
                self._take_over(found)
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the lines that have a result."""
        return frozenset(self._spans)

    def append(self, line: Asked, record: dict[str, Any]) -> None:
        """Writes one result to the file at once.

        Raises:
            OSError: it cannot be written, or the file was moved, changed or removed meanwhile. The
                message says where the results so far are.
        """
        data = encode_result(self._kind, line, self._settings, record)
        try:
            if not self._end:
                os.ftruncate(self._file, 0)  # results to overwrite
            _write(self._file, data, self._end)
        except BaseException as error:
            with suppress(OSError):  # so that there are whole lines only
                os.ftruncate(self._file, self._end)
            if isinstance(error, OSError):
                raise self._failure("write", error) from None
            raise
        self._spans[line.number] = (self._end, self._end + len(data))
        self._end += len(data)
        self._check_place()

    def finish(self) -> None:
        """Sorts the records in the order of the input, so that a stop leaves no trace.

        Raises:
            OSError: as `append`; the results are in the file in any case.
        """
        if not self._end:
            os.ftruncate(self._file, 0)
        self._check_place()
        ordered = dict(sorted(self._spans.items()))
        try:
            if list(ordered) == list(self._spans):
                os.fsync(self._file)
            else:
                self._rewrite(ordered)
        except OSError as error:
            raise self._failure("sort", error) from None

    def close(self) -> None:
        """Closes the file, which unlocks it."""
        os.close(self._file)

    def _take_over(self, found: OldResults) -> None:
        """Keeps what is good, and removes the rest."""
        self._spans = found.spans
        self._end = sum(stop - start for start, stop in self._spans.values())
        if found.torn:
            print_stderr(f"{self.path}: the last line was cut off; its question is asked again")
        if self._end != os.fstat(self._file).st_size:
            try:
                self._rewrite(self._spans)
            except OSError as error:
                raise self._failure("write", error) from None

    # ------------------------------------------------------------------ writing it anew

    def _rewrite(self, spans: dict[int, Span]) -> None:
        """Moves a file of these records over the old one, so that a crash leaves one whole.

        It has the same name in every run: what a killed run left is replaced by the next.
        """
        with suppress(FileNotFoundError):
            self._scratch.unlink()
        file = os.open(self._scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            lock(file, self._target)
            moved = self._copy(file, spans)
            os.fsync(file)
            old = os.fstat(self._file)
            with suppress(PermissionError):
                os.fchown(file, old.st_uid, old.st_gid)
            os.fchmod(file, old.st_mode & 0o777)
            os.replace(self._scratch, self._target)
        except BaseException:
            os.close(file)
            self._scratch.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self._spans = file, moved

    def _copy(self, to: int, spans: dict[int, Span]) -> dict[int, Span]:
        """Copies records to another file, one after the other; returns where they are there."""
        moved: dict[int, Span] = {}
        end = 0
        for line, (start, stop) in spans.items():
            for at in range(start, stop, _PIECE):
                data = os.pread(self._file, min(_PIECE, stop - at), at)
                _write(to, data, end + at - start)
            moved[line] = (end, end + stop - start)
            end += stop - start
        return moved

    # ------------------------------------------------------------------ what may go wrong

    def _failure(self, verb: str, error: OSError) -> OSError:
        return OSError(
            f"cannot {verb} {self.path}: {error.strerror or error}; it keeps its "
            f"{self._count()}, so give the same command again when that is mended"
        )

    def _check_place(self) -> None:
        """Raises OSError if the path does not lead to what was written, and says what does."""
        found = os.fstat(self._file)
        if leads_to(self._target, self._file):
            if found.st_size != self._end:
                raise OSError(
                    f"{self.path} was changed by something else while its run went on; look at "
                    "its last lines before you give the same command again"
                )
            return
        if found.st_nlink:
            raise OSError(
                f"{self.path} was moved or replaced while its run went on; the "
                f"{self._count()} are in the file that it was"
            )
        raise OSError(
            f"{self.path} was removed while its run went on; the {self._count()} are in "
            f"{self._rescue()} now: move it back and give the same command to resume"
        )

    def _rescue(self) -> str:
        """Saves the results of a removed file: in its folder, or where temporary files go."""
        folder = self._target.parent
        file, name = tempfile.mkstemp(
            prefix=f"{self._target.stem}-", suffix=self._target.suffix,
            dir=folder if folder.is_dir() else None,
        )  # fmt: skip
        try:
            self._copy(file, self._spans)
        finally:
            os.close(file)
        return name

    def _count(self) -> str:
        return "1 result" if len(self._spans) == 1 else f"{len(self._spans)} results"


def _write(file: int, data: bytes, at: int) -> None:
    """Writes all of `data`; a full disk takes a part, and raises on the second try."""
    written = os.pwrite(file, data, at)
    while written < len(data):
        written += os.pwrite(file, data[written:], at + written)
