"""Times every op of the loop: each is a graph of its own, between two marks of a clock.

On a GPU the marks are events on the stream of the graphs: they measure the device's time, and the
host does not wait. On a CPU they come from the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rsd_engine.loop.executors.base import annotate
from rsd_engine.loop.executors.host_graphs import Recorder
from rsd_engine.loop.program import Call


@dataclass(frozen=True)
class OpTime:
    """All runs of one op."""

    calls: int
    seconds: float


class Clock(Protocol):
    """Marks points in time; `seconds` gives the time between two of them."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, end: Any) -> float: ...


class HostClock:
    """For ops that run in the host's own thread."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class StreamClock:
    """For ops that run on a stream, in order."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()  # host read: after the run, when the times are asked for
        return start.elapsed_time(end) * 1e-3


class TimedRecorder:
    """A recorder that gives every op a graph of its own, made by `inner`, and times it."""

    def __init__(self, inner: Recorder, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._marks: list[tuple[str, Any, Any]] = []
        self._times: dict[str, OpTime] = {}

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        replays = [(op.name, self._inner.record((op,))) for op in ops]

        def replay() -> None:
            for name, run in replays:
                start = self._clock.mark()
                with annotate(name):
                    run()
                self._marks.append((name, start, self._clock.mark()))

        return replay

    def begin(self) -> None:
        self._inner.begin()

    def read(self, flag: Tensor) -> int:
        return self._inner.read(flag)

    def close(self) -> None:
        self._inner.close()

    def times(self) -> dict[str, OpTime]:
        """Times by op, in the order of their first run. Call it between launches."""
        for name, start, end in self._marks:
            before = self._times.get(name, OpTime(0, 0.0))
            seconds = before.seconds + self._clock.seconds(start, end)
            self._times[name] = OpTime(before.calls + 1, seconds)
        self._marks.clear()
        return dict(self._times)

    def reset(self) -> None:
        """Discards what was measured so far, such as a warm-up."""
        self._marks.clear()
        self._times.clear()
