"""How everything here is timed: right answers first, then warm runs that take turns.

Two programs timed one after the other see two different machines (clock, neighbours, memory), and
the difference is easily larger than what is measured. So they alternate, the median is reported,
and the spread stands beside it. Programs are timed by the wall clock (`alternate`); calls of
microseconds on a device are timed in bulk, by its own clock (`alternate_calls`).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_FLUSH_BYTES = 2**28  # more than any L2 cache
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


@dataclass(frozen=True)
class Calls:
    """Calls of one op, each on memory of its own: `call(i)`, i below the number of copies.

    With enough copies no cache holds what a call reads, which is how a model finds its weights.
    """

    call: Callable[[int], object]
    reset: Callable[[], object] | None = None  # before every run, not timed
    captured: bool = True  # on a GPU: one CUDA graph of all calls; else launched by the host


def alternate_calls(
    contenders: Mapping[str, Calls], *, device: torch.device, copies: int, runs: int
) -> dict[str, Timing]:
    """Seconds of one call, by runs of `copies` calls, one run of each contender in turn.

    On a GPU a run lies between two events and starts with a cold L2 cache; the launch of the graph
    is in it, shared by all copies. Everything is called once before (and so compiled).

    Raises:
        ValueError: `copies` or `runs` is below 1.
    """
    if copies < 1 or runs < 1:
        raise ValueError(f"copies and runs must be at least 1, got {copies} and {runs}")
    prepared = {name: prepare(calls, copies, device) for name, calls in contenders.items()}
    flush = None
    if device.type == "cuda":
        flush = torch.ones(_FLUSH_BYTES // 4, device=device)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, fn in prepared.items():
            reset = contenders[name].reset
            if reset is not None:
                reset()
            seconds = seconds_of(fn) if flush is None else _seconds_on_device(fn, flush)
            taken[name].append(seconds / copies)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def prepare(calls: Calls, copies: int, device: torch.device) -> Callable[[], object]:
    """All calls as one function, warmed up; on a GPU the replay of a graph if it is captured."""

    def run_all() -> None:
        for index in range(copies):
            calls.call(index)

    if calls.reset is not None:
        calls.reset()
    run_all()
    if device.type != "cuda" or not calls.captured:
        return run_all
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # cuBLAS takes its workspace of this stream before the capture
        run_all()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with _nothing_collected(), torch.cuda.graph(graph, stream=side):
        run_all()
    return graph.replay


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """A graph of an earlier case must not be destroyed while another one is captured."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _seconds_on_device(fn: Callable[[], object], flush: Tensor) -> float:
    """Between two events around `fn`, with nothing of its data in the L2 cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.sum()
    start.record()
    fn()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


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


def product_speed(size: int = _PRODUCT_SIZE, runs: int = 3) -> float:
    """Floating-point operations a second of a large fp32 matrix product; the best of some runs."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / min(seconds_of(lambda: a @ b) for _ in range(runs + 1))
