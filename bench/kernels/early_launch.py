"""Kernels that start early: how they are switched on, and their gate before they are timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.lib.timing import Mismatch
from rsd_kernels.linear import tiles

# Bytes of weights that a program prefetches before it waits; None for the default.
VARIANTS: dict[str, int | None] = {
    "ours, early": None,
    "ours, early, no weights ahead": 0,
    "ours, early, 64 KiB ahead": 65536,
}
_SWITCH = "RSD_OVERLAP_KERNELS"
_TOKENS = 8
_ROUNDS = 4


@contextmanager
def starting_early(on: bool) -> Iterator[None]:
    """Sets whether kernels launched or captured inside start early, whatever the user has set."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


@contextmanager
def prefetching(num_bytes: int | None) -> Iterator[None]:
    """Projections launched or captured inside prefetch this many bytes of their weights."""
    if num_bytes is None:
        yield
        return
    before = tiles.PREFETCH_BYTES
    tiles.PREFETCH_BYTES = num_bytes
    try:
        yield
    finally:
        tiles.PREFETCH_BYTES = before


def switched(
    call: Callable[[int], object], *, early: bool, prefetch: int | None = None
) -> Callable[[int], None]:
    """The call, with these settings while it runs."""

    def run(index: int) -> None:
        with starting_early(early), prefetching(prefetch):
            call(index)

    return run


def require_same_logits(
    plain: Callable[[], object],
    early: Callable[[], object],
    token: Tensor,  # [N] int32, what both read
    logits: Tensor,  # [N, vocab], what both write
) -> None:
    """Both must write bitwise the same logits, for several tokens one after another.

    A kernel that reads too early then reads values of another layer or token, which shows.

    Raises:
        Mismatch: they do not.
    """
    kept, vocab = token.clone(), logits.shape[1]
    tokens = [(1 + 7919 * i) % vocab for i in range(_TOKENS)]
    wanted = [_logits_of(plain, t, token, logits) for t in tokens]
    for turn in range(_ROUNDS):
        for t, expected in zip(tokens, wanted, strict=True):
            if not torch.equal(_logits_of(early, t, token, logits), expected):
                raise Mismatch(f"kernels that start early: other logits, token {t}, round {turn}")
    token.copy_(kept)


def _logits_of(run: Callable[[], object], value: int, token: Tensor, logits: Tensor) -> Tensor:
    token.fill_(value)
    logits.fill_(torch.nan)
    run()
    return logits.clone()
