"""The process that an engine belongs to: a fork copies memory, but neither threads nor the GPU."""

from __future__ import annotations

import os
from typing import NoReturn

_ADVICE = (
    "make an engine in each process, and start processes by spawn, not by fork, such as with "
    "multiprocessing.get_context('spawn')"
)
_first: HomeProcess | None = None  # of the first engine that this process, or its parent, made


class HomeProcess:
    """The process that makes it.

    Raises:
        RuntimeError: this process was forked from one that had made an engine. Threads of the
            libraries below us are gone here, and the first parallel loop would wait for them.
    """

    def __init__(self) -> None:
        global _first
        self._pid = os.getpid()
        _first = _first or self
        if not _first.is_here:
            raise RuntimeError(
                f"process {self._pid} was forked from one with an engine, process {_first._pid}, "
                f"and cannot run one of its own; {_ADVICE}"
            )

    @property
    def is_here(self) -> bool:
        """Whether this is the process; takes no lock."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Refuses to go on in any other process.

        Raises:
            RuntimeError: this process was forked from the one that the engine belongs to.
        """
        if not self.is_here:
            raise RuntimeError(
                f"this engine belongs to process {self._pid}, and process {os.getpid()} was "
                f"forked from it; {_ADVICE}"
            )


def refuse_to_copy(what: str) -> NoReturn:
    """For `__reduce__` of what has threads: pickling and copying end with a useful error.

    Raises:
        TypeError: always.
    """
    raise TypeError(f"{what} cannot be copied, pickled or sent to another process; {_ADVICE}")
