"""How everything here is timed: right answers first, then warm runs that take turns.

Two programs timed one after the other see two different machines (clock, neighbours, memory), and
the difference is easily larger than what is measured. So they alternate, the median is reported,
and the spread stands beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

_READ_BYTES = 2**29
_PRODUCT_SIZE = 1536


class Mismatch(ValueError):
    """Two programs that should do the same work did not: there is nothing to time."""


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs of one thing."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("seconds is empty; a timing needs at least one run")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def rates(self, work: float) -> dict[str, float]:
        """`work` a second: of the median run, and of the slowest and the fastest."""
        return {
            "median": work / self.median,
            "min": work / max(self.seconds),
            "max": work / min(self.seconds),
        }


def seconds_of(fn: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def alternate(
    contenders: Mapping[str, Callable[[], object]], runs: int, warmup: int = 1
) -> dict[str, Timing]:
    """Times every contender `runs` times, one run of each in turn, after `warmup` untimed ones.

    Raises:
        ValueError: `runs` is below 1.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    for _ in range(warmup):
        for fn in contenders.values():
            fn()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, fn in contenders.items():
            taken[name].append(seconds_of(fn))
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def require_same_tokens(
    ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], what: str
) -> None:
    """The gate before any timing: both programs must have written the same tokens.

    Raises:
        Mismatch: naming the first sequence and position where they part.
    """
    if len(ours) != len(theirs):
        raise Mismatch(f"{what}: {len(ours)} sequences of ours, {len(theirs)} of theirs")
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if list(mine) == list(other):
            continue
        pairs = enumerate(zip(mine, other, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(other)))
        raise Mismatch(
            f"{what}: sequence {index} parts at token {at}: ours {list(mine[at : at + 4])}, "
            f"theirs {list(other[at : at + 4])} ({len(mine)} and {len(other)} tokens)"
        )


def read_bandwidth(num_bytes: int = _READ_BYTES, runs: int = 5) -> float:
    """Bytes a second that this many threads read from memory; the best of some runs."""
    data = torch.ones(num_bytes // 4)
    return num_bytes / min(seconds_of(data.sum) for _ in range(runs))


def product_speed(size: int = _PRODUCT_SIZE, runs: int = 3) -> float:
    """Floating-point operations a second of a large fp32 matrix product; the best of some runs."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / min(seconds_of(lambda: a @ b) for _ in range(runs + 1))
