"""Set-up of the whole suite: tests that need a GPU, threads, and a Ctrl-C that interrupts."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tests.kept_renderers import kept_renderers

__all__ = ["kept_renderers"]


def pytest_configure() -> None:
    """Shells start background jobs with Ctrl-C ignored, and children inherit that.

    Processes that tests start have one thread each, as the tests have.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread: more do not speed up products of a few rows, and wait long on busy cores."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where there is no CUDA device, and says so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
