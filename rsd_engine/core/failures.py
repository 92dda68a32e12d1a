"""A failure that belongs to one request, as its reader is told of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rsd_engine.outputs import ErrorKind

logger = logging.getLogger("rsd_engine")

_MOST_SHOWN = 500  # characters of an error


@dataclass(frozen=True)
class Failure:
    """Why a request ended with an error."""

    kind: ErrorKind
    message: str

    @classmethod
    def caught(cls, kind: ErrorKind, what: str, error: BaseException) -> Failure:
        """`error` in one line, after `what` failed; the log has it too, its traceback as debug."""
        said = " ".join(str(error).split())[:_MOST_SHOWN]
        name = type(error).__name__
        message = f"{what} failed: {name}: {said}" if said else f"{what} failed: {name}"
        logger.error("a request ends with an error: %s", message)
        logger.debug("its traceback:", exc_info=error)
        return cls(kind, message)
