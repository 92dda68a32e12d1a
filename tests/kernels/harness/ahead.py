"""Runs interpreted checks beside the rest of the suite: they are a third of it, and a second core
would have nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest


class Ahead:
    """Starts checks before their tests are reached, one file after the other.

    Args:
        run: runs a file of checks; raises AssertionError with its report if one fails.
    """

    def __init__(self, run: Callable[[str], None]) -> None:
        self._run = run
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checks")
        self._started: dict[str, Future[None]] = {}

    def start(self, names: Iterable[str]) -> None:
        """Begins with the first of `names`."""
        self._started |= {name: self._worker.submit(self._run, name) for name in names}

    def finish(self, name: str) -> None:
        """Runs a file of checks, or waits for its end if it was started."""
        if name in self._started:
            self._started.pop(name).result()
        else:
            self._run(name)

    def close(self) -> None:
        """Starts no more of them."""
        self._worker.shutdown(wait=False, cancel_futures=True)


def files_of(items: Iterable[pytest.Item]) -> list[str]:
    """The files that the selected tests will ask for, each once, in their order."""
    found: dict[str, None] = {}
    for item in items:
        if isinstance(item, pytest.Function) and last(item):
            parametrized = getattr(item, "callspec", None)
            name = parametrized.params["name"] if parametrized else item.module.CHECKS
            found[name] = None
    return list(found)


def last(item: pytest.Item) -> bool:
    """Whether a test only waits for checks; a key that sorts these behind all others."""
    return isinstance(item, pytest.Function) and item.originalname == "test_in_the_interpreter"
