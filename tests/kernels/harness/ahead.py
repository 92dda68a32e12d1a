"""Runs files of checks beside the rest of the suite: they are a third of it, and a second core
would have nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest


class Checks(NamedTuple):
    """A file of checks in `tests/`.

    Attributes:
        interpreted: whether Triton interprets the kernels.
        fake_driver: whether the CUDA driver is that of `tests/fake_cuda/`.
    """

    name: str
    interpreted: bool
    fake_driver: bool = False


_MADE_BY_TEST: dict[str, Callable[[str], Checks]] = {
    "test_in_the_interpreter": lambda name: Checks(name, interpreted=True),
    "test_without_a_device": lambda name: Checks(name, interpreted=False),
    "test_on_a_fake_driver": lambda name: Checks(name, interpreted=False, fake_driver=True),
}


class Ahead:
    """Starts checks before their tests are reached, one file after the other.

    Args:
        run: runs a file of checks; raises AssertionError with its report if one fails.
    """

    def __init__(self, run: Callable[[Checks], None]) -> None:
        self._run = run
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checks")
        self._started: dict[Checks, Future[None]] = {}

    def start(self, files: Iterable[Checks]) -> None:
        """Begins with the first of `files`."""
        self._started |= {checks: self._worker.submit(self._run, checks) for checks in files}

    def finish(self, checks: Checks) -> None:
        """Runs a file of checks, or waits for its end if it was started."""
        if checks in self._started:
            self._started.pop(checks).result()
        else:
            self._run(checks)

    def close(self) -> None:
        """Starts no more of them."""
        self._worker.shutdown(wait=False, cancel_futures=True)


def files_of(items: Iterable[pytest.Item]) -> list[Checks]:
    """The files that the selected tests will ask for, each once, in their order."""
    found: dict[Checks, None] = {}
    for item in items:
        if isinstance(item, pytest.Function) and only_waits(item):
            parametrized = getattr(item, "callspec", None)
            name = parametrized.params["name"] if parametrized else item.module.CHECKS
            found[_MADE_BY_TEST[item.originalname](name)] = None
    return list(found)


def only_waits(item: pytest.Item) -> bool:
    """Whether a test does nothing but run checks, which can begin before it."""
    return isinstance(item, pytest.Function) and item.originalname in _MADE_BY_TEST
