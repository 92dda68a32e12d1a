"""What the core asks of every executor."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch


class Executor(Protocol):
    """Runs the program; one launch is one run of its While."""

    name: str
    ticks_per_launch: int  # a launch returns after this many ticks at the latest
    blocks: bool  # whether `start` runs the whole launch, and nothing can be told before its end

    def start(self) -> None:
        """Begins a launch. Leave the state alone until `poll` has returned True."""

    def poll(self) -> bool:
        """Drives the launch, or looks whether it has ended; True once it has returned."""

    def close(self) -> None:
        """Frees what it holds on the device; no launch may be running."""


_NOTHING: AbstractContextManager[None] = nullcontext()


def annotate(name: str) -> AbstractContextManager[None]:
    """A named range on the host's timeline, for profilers of CUDA (NVTX)."""
    if not _on_gpu():
        return _NOTHING
    ranged: AbstractContextManager[None] = torch.cuda.nvtx.range(name)
    return ranged


@functools.cache
def _on_gpu() -> bool:
    return torch.cuda.is_available()
