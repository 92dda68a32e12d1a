"""What every way of running the program offers to the core."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch


class Executor(Protocol):
    """Runs the program; one launch is one run of its While."""

    name: str
    ticks_per_launch: int  # a launch returns after so many ticks at the latest

    def start(self) -> None:
        """Begins a launch. The state may be touched again when `poll` has said that it ended."""

    def poll(self) -> bool:
        """Goes on, or looks after what goes on by itself; True once the launch has returned."""

    def close(self) -> None:
        """Lets go of what it holds on the device; no launch may be running."""


_NOTHING: AbstractContextManager[None] = nullcontext()


def annotate(name: str) -> AbstractContextManager[None]:
    """A range of this name on the host's timeline."""
    if not _on_gpu():
        return _NOTHING
    ranged: AbstractContextManager[None] = torch.cuda.nvtx.range(name)
    return ranged


@functools.cache
def _on_gpu() -> bool:
    return torch.cuda.is_available()
