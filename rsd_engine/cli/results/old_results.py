"""Reads the results that a file has already, and refuses a file that holds anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.results.result_line import Asked, ResultsKind

Span = tuple[int, int]
"""Where a record begins and ends in its file, in bytes."""

_START = b'{"line": '


@dataclass(frozen=True)
class OldResults:
    """What a file of results holds.

    Attributes:
        spans: the good records, by the number of their input line, in the order of the file.
        torn: whether the last line is incomplete, as after a crash.
    """

    spans: dict[int, Span]
    torn: bool


def read_results(
    file: BinaryIO, path: Path, kind: ResultsKind, settings: str, inputs: Mapping[int, Asked]
) -> OldResults:
    """Finds the results of these settings and inputs; those of failed lines are left out.

    Raises:
        UsageError: the file has results of other settings or inputs, or something else.
    """
    spans: dict[int, Span] = {}
    for record, start, stop in _records(file, path, kind):
        if record is None:
            return OldResults(spans, torn=True)
        if "error" in record:
            continue
        if record[kind.settings] != settings:
            raise UsageError(
                f"{path} was written with other models or settings; give the same ones to "
                "resume it, another --output, or --overwrite to start again"
            )
        number = record["line"]
        line = inputs.get(number)
        if line is None or line.digest != record["input"]:
            raise UsageError(
                f"{kind.place.format(number=number)} has changed since {path} answered it; give "
                "another --output, or --overwrite to start again"
            )
        spans.setdefault(number, (start, stop))
    return OldResults(spans, torn=False)


def check_results(file: BinaryIO, path: Path, kind: ResultsKind) -> None:
    """Raises UsageError if the file has anything but results, of whatever settings."""
    for _ in _records(file, path, kind):
        pass


def _records(
    file: BinaryIO, path: Path, kind: ResultsKind
) -> Iterator[tuple[dict[str, Any] | None, int, int]]:
    """Each record with its span; None for an incomplete last line."""
    start = position = 0
    # The first byte of a line is looked at first: a foreign file may be one line of gigabytes.
    while first := file.read(1):
        position += 1
        raw = first + file.readline() if first == b"{" else first
        record = _parse(raw, kind) if raw.endswith(b"\n") else None
        torn = first == b"{" and raw[-1:] != b"\n" and raw.startswith(_START[: len(raw)])
        if record is None and not torn:
            raise UsageError(
                f"{path}, line {position}, is not a result of `{kind.command}`; nothing was "
                "changed. Give another --output, or remove the file yourself"
            )
        yield record, start, start + len(raw)
        start += len(raw)


def _parse(raw: bytes, kind: ResultsKind) -> dict[str, Any] | None:
    """A line, if it is a record."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("line")) is not int:
        return None
    texts = (record.get("input"), record.get(kind.settings))
    return record if all(isinstance(text, str) for text in texts) else None
