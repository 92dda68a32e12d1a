"""Variants of the decode kernels: how they are chosen, and a gate before they are timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor

from bench.lib.timing import Mismatch
from rsd_kernels import ahead
from rsd_kernels.attention import kernel as attention
from rsd_kernels.linear import tiles

# Bytes of weights that a program prefetches before it waits; None for the default.
VARIANTS: dict[str, int | None] = {
    "ours, early": None,
    "ours, early, no weights ahead": 0,
    "ours, early, 64 KiB ahead": 65536,
}
# Of kernels that do not start early: other constants of the modules in `_MODULES`. They change a
# grid and an argument, and no kernel.
PRODUCT_VARIANTS: dict[str, dict[str, int]] = {
    "ours, nothing ahead": {"AHEAD_BYTES": 0, "ATTENTION_AHEAD_BYTES": 0},
    "ours, nothing ahead by attention": {"ATTENTION_AHEAD_BYTES": 0},
    "ours, 16 MB ahead": {"AHEAD_BYTES": 2**24},
    "ours, a program a tile": {"RESIDENT": 2**20},
}
_MODULES = (tiles, ahead, attention)
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
def with_constants(**values: int) -> Iterator[None]:
    """Sets constants of `_MODULES` for what is launched or captured inside."""
    with ExitStack() as stack:
        for module in _MODULES:
            for name in values.keys() & vars(module).keys():
                stack.enter_context(mock.patch.object(module, name, values[name]))
        yield


def prefetching(num_bytes: int | None) -> AbstractContextManager[None]:
    """Projections launched or captured inside prefetch this many bytes of their weights."""
    return with_constants(**({} if num_bytes is None else {"PREFETCH_BYTES": num_bytes}))


def switched(
    call: Callable[[int], object],
    *,
    early: bool,
    prefetch: int | None = None,
    constants: dict[str, int] | None = None,
) -> Callable[[int], None]:
    """The call, with these settings while it runs."""

    def run(index: int) -> None:
        with starting_early(early), prefetching(prefetch), with_constants(**constants or {}):
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
