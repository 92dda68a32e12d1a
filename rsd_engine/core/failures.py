"""A failure that belongs to one request, as its reader is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_engine.outputs import ErrorKind

_MOST_SHOWN = 500  # characters of an error


@dataclass(frozen=True)
class Failure:
    """Why a request ended with an error."""

    kind: ErrorKind
    message: str

    @classmethod
    def of(cls, kind: ErrorKind, what: str, error: BaseException) -> Failure:
        """`error` in one line, after `what` failed."""
        said = " ".join(str(error).split())[:_MOST_SHOWN]
        name = type(error).__name__
        return cls(kind, f"{what} failed: {name}: {said}" if said else f"{what} failed: {name}")
