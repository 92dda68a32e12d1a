"""How every benchmark measures time: contenders are warmed up, then timed in alternation.

Programs that are timed one after the other see different machines: clock rates, other processes and
the state of memory change, often by more than the difference that is measured. So contenders
alternate, and the median is reported with its spread. Whole programs are timed by the wall clock
(`alternate`); calls of microseconds are timed many at a time, by the clock of the device
(`alternate_calls`).
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


class Mismatch(ValueError):
    """Two programs that must give the same results did not, so timing them means nothing."""


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs of one contender."""

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
        """`work` per second of the median, the slowest and the fastest run."""
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
    """Times every contender `runs` times in alternation, after `warmup` untimed runs of each.

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
    """One op on several copies of its data.

    With enough copies no cache holds what a call reads, as with the weights of a model.

    Attributes:
        call: runs the op on copy i.
        reset: called before every run, outside the timing.
        captured: whether a GPU replays all calls as one CUDA graph; otherwise the host launches
            them.
    """

    call: Callable[[int], object]
    reset: Callable[[], object] | None = None
    captured: bool = True


def alternate_calls(
    contenders: Mapping[str, Calls], *, device: torch.device, copies: int, runs: int
) -> dict[str, Timing]:
    """Seconds of one call: the time of a run of `copies` calls, divided; contenders alternate.

    On a GPU a run lies between two events and starts with a cold L2 cache; it includes the launch
    of the graph, spread over all copies. Everything is called once beforehand, and so compiled.

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
    """All calls as one function, warmed up; on a GPU, if captured, the replay of a graph."""

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
    with torch.cuda.stream(
        side
    ):  # cuBLAS allocates its workspace for this stream before the capture
        run_all()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with _no_garbage_collection(), torch.cuda.graph(graph, stream=side):
        run_all()
    return graph.replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Destroying an earlier graph while another one is captured would break the capture."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _seconds_on_device(fn: Callable[[], object], flush: Tensor) -> float:
    """Seconds between two events around `fn`, which starts with a cold L2 cache."""
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
    """The gate before timing: both programs must have written the same tokens.

    Raises:
        Mismatch: naming the first sequence and position that differ.
    """
    if len(ours) != len(theirs):
        raise Mismatch(f"{what}: {len(ours)} sequences of ours, {len(theirs)} of theirs")
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if list(mine) == list(other):
            continue
        pairs = enumerate(zip(mine, other, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(other)))
        raise Mismatch(
            f"{what}: sequence {index} differs at token {at}: ours {list(mine[at : at + 4])}, "
            f"theirs {list(other[at : at + 4])} ({len(mine)} and {len(other)} tokens)"
        )
