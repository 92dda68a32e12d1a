"""The JSONL file of results, written line by line, from which a stopped run can be resumed.

A record is one `write` of a whole line, so Ctrl-C comes before or after it, never inside. After a
crash the last line may be incomplete: it is removed and its question asked again. A record has
digests of its input line and of the settings, so a run never resumes another one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError, print_stderr
from rsd_engine.cli.generate.questions import InputLine

_START = b'{"line": '


@dataclass(frozen=True)
class _Kept:
    """A record of the file, by the positions of its bytes."""

    line: int  # of the input
    start: int
    stop: int


class ResultsFile:
    """The results of a run, including those that the file has already.

    Args:
        path: the file; created if it does not exist.
        settings: digest of all settings that decide the results.
        lines: the lines of the input.
        overwrite: discard what the file has.

    Raises:
        UsageError: the file holds something other than results of these settings and lines.
    """

    def __init__(
        self, path: Path, settings: str, lines: Sequence[InputLine], *, overwrite: bool = False
    ) -> None:
        self.path = path
        self._settings = settings
        self._inputs = {line.number: line for line in lines}
        self._kept: list[_Kept] = []
        try:
            data = path.read_bytes() if path.exists() and not overwrite else b""
            self._take_over(data)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if overwrite else 0)
            self._file = os.open(path, flags, 0o644)
        except OSError as error:
            raise UsageError(f"cannot use {path} for results: {error.strerror}") from None
        self._size = os.fstat(self._file).st_size

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the lines that have a result."""
        return frozenset(kept.line for kept in self._kept)

    def append(self, line: InputLine, record: dict[str, Any]) -> None:
        """Writes one result to the file at once."""
        data = encode_record(line, self._settings, record)
        written = os.write(self._file, data)
        while written < len(data):  # a full disk raises on the second try
            written += os.write(self._file, data[written:])
        self._kept.append(_Kept(line.number, self._size, self._size + len(data)))
        self._size += len(data)

    def close(self) -> None:
        """Sorts the records in the order of the input, so that a stop leaves no trace."""
        os.close(self._file)
        ordered = sorted(self._kept, key=lambda kept: kept.line)
        if ordered != self._kept:
            data = self.path.read_bytes()
            self._replace(data[kept.start : kept.stop] for kept in ordered)

    def _take_over(self, data: bytes) -> None:
        *whole, last = data.split(b"\n")
        if last and not last.startswith(_START[: len(last)]):
            raise UsageError(self._foreign(len(whole) + 1))
        good: list[bytes] = []
        size = 0
        for position, raw in enumerate(whole, start=1):
            record = self._read(raw, position)
            if record is None:
                continue
            good.append(raw + b"\n")
            self._kept.append(_Kept(record, size, size + len(raw) + 1))
            size += len(raw) + 1
        if last:
            print_stderr(f"{self.path}: the last line was cut off; its question is asked again")
        if size != len(data):
            self._replace(good)

    def _read(self, raw: bytes, position: int) -> int | None:
        """The input line that a record answers; None if the line had failed."""
        try:
            record = json.loads(raw)
            number, digest = record["line"], record["input"]
            settings = record["settings"]
        except (ValueError, TypeError, KeyError):
            raise UsageError(self._foreign(position)) from None
        if "error" in record:
            return None
        if settings != self._settings:
            raise UsageError(
                f"{self.path} was written with other models or settings; give the same ones to "
                "resume it, another --output, or --overwrite to start again"
            )
        line = self._inputs.get(number)
        if line is None or line.digest != digest:
            raise UsageError(
                f"line {number} of the input has changed since {self.path} answered it; give "
                "another --output, or --overwrite to start again"
            )
        return int(number)

    def _foreign(self, position: int) -> str:
        return (
            f"{self.path}, line {position}, is not a result of `rsd generate`; nothing was "
            "changed. Give another --output, or --overwrite to replace the file"
        )

    def _replace(self, pieces: Iterable[bytes]) -> None:
        """Writes a new file and moves it over the old one, so that a crash leaves one whole."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, self.path.stat().st_mode & 0o777)
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def encode_record(line: InputLine, settings: str, record: dict[str, Any]) -> bytes:
    """A record as one line of JSON. It begins with `line`, which marks even an incomplete one."""
    head = {"line": line.number, "input": line.digest, "settings": settings}
    text = json.dumps({**head, **record}, ensure_ascii=False)
    # half a surrogate pair, which JSON allows and UTF-8 does not, becomes its JSON escape again
    return text.encode(errors="backslashreplace") + b"\n"
