"""What the passes of a run cost alone: each body of the loop, replayed by itself as a plain graph.

The loop has a body for every role and number of rows. A counting run of a scene counts how often
each body runs and keeps the state of the loop before one of its passes. The body is then replayed
from that state, which is restored before every replay, outside the timing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from bench.lib.timing import Timing
from rsd_engine.loop.executors.host_graphs import DirectRecorder, HostGraphsExecutor, Recorder
from rsd_engine.loop.executors.timed_recorder import Clock, HostClock, StreamClock
from rsd_engine.loop.program import Block, Call, Switch, While, calls
from rsd_engine.loop.rsd import Loop, build_program
from rsd_kernels.state.enums import Role

_HEAD_START = 400_000  # cycles that the device sleeps while the host enqueues a replay


class Snapshot:
    """The state and the rows of a loop at one moment.

    Attributes:
        copies: every tensor of the loop and its copy.
    """

    def __init__(self, loop: Loop) -> None:
        self.copies = [(tensor, tensor.clone()) for tensor in _tensors(loop)]

    def restore(self) -> None:
        for tensor, copy in self.copies:
            tensor.copy_(copy)


@dataclass
class Counted:
    """Number of passes by body, and the state before one of each."""

    counts: Counter[int] = field(default_factory=Counter)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class CountingRecorder:
    """A recorder for host graphs that sees which body each tick runs."""

    def __init__(self, inner: Recorder, loop: Loop) -> None:
        self.counted = Counted()
        self._inner = inner
        self._loop = loop

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        return self._inner.record(ops)

    def begin(self) -> None:
        self._inner.begin()

    def read(self, flag: Tensor) -> int:
        value = self._inner.read(flag)
        if flag is self._loop.state.pass_body:
            self._count(value)
        return value

    def close(self) -> None:
        self._inner.close()

    def _count(self, body: int) -> None:
        """Keeps the state of a pass in the later half, when contexts have grown."""
        counted = self.counted
        counted.counts[body] += 1
        if counted.counts[body].bit_count() == 1:
            counted.snapshots[body] = Snapshot(self._loop)
            self._inner.begin()  # the body must come after the copies


@dataclass(frozen=True)
class LonePass:
    """One body: how often the counting run ran it, and its time alone."""

    role: str
    rows: int
    count: int
    alone: Timing

    def to_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "rows": self.rows,
            "count": self.count,
            "seconds_alone": self.alone.median,
            "spread": self.alone.spread,
        }


class Replayer:
    """Records the bodies of a loop, once each, and times their replays.

    Raises:
        GraphError: a body cannot be captured.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._bodies = _bodies(loop)
        self._buckets: list[int] = loop.state.row_buckets.tolist()
        self._replays: dict[int, Callable[[], None]] = {}
        self._executor: HostGraphsExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._clock: Clock = HostClock()
        self._recorder: Recorder = DirectRecorder()
        device = loop.state.length.device
        if device.type == "cuda":
            from rsd_engine.loop.cuda.capture_stream import CaptureStream
            from rsd_engine.loop.cuda.recorder import CudaRecorder

            capture = CaptureStream(device)
            before = Snapshot(loop)  # the rows still hold the last pass, and ops act on them
            capture.warm_up(build_program(loop))
            before.restore()
            self._recorder = CudaRecorder(capture)
            self._stream, self._clock = capture.stream, StreamClock(capture.stream)
        self._counting = CountingRecorder(self._recorder, loop)

    def counting_executor(self, ticks_per_launch: int) -> HostGraphsExecutor:
        """An executor that counts from zero; `time` then times the bodies that it ran."""
        self._counting.counted = Counted()
        if self._executor is None:
            self._executor = HostGraphsExecutor(
                build_program(self._loop), self._counting, ticks_per_launch=ticks_per_launch,
                name="counting",
            )  # fmt: skip
        return self._executor

    @property
    def counted(self) -> Counted:
        return self._counting.counted

    def time(self, runs: int) -> list[LonePass]:
        """Times every body that was counted; leaves the state as it was."""
        counted, before = self.counted, Snapshot(self._loop)
        found = [
            LonePass(
                role=Role(body // len(self._buckets)).name.lower(),
                rows=self._buckets[body % len(self._buckets)],
                count=counted.counts[body],
                alone=self._alone(body, counted.snapshots[body], runs),
            )
            for body in sorted(counted.snapshots)
            if body < len(self._bodies)
        ]
        before.restore()
        return found

    def close(self) -> None:
        self._recorder.close()

    def _alone(self, body: int, snapshot: Snapshot, runs: int) -> Timing:
        replay = self._replays.get(body)
        if replay is None:
            replay = self._recorder.record(tuple(calls(self._bodies[body])))
            self._replays[body] = replay
        marks = []
        for _ in range(runs + 1):
            snapshot.restore()
            self._recorder.begin()
            if self._stream is not None:  # keeps the launch out of the timing
                with torch.cuda.stream(self._stream):
                    torch.cuda._sleep(_HEAD_START)
            start = self._clock.mark()
            replay()
            marks.append((start, self._clock.mark()))
            if self._stream is not None:
                self._stream.synchronize()  # the next restore must come after this replay
        return Timing(tuple(self._clock.seconds(*pair) for pair in marks[1:]))


def _bodies(loop: Loop) -> tuple[Block, ...]:
    """The bodies of the switch inside the program's While."""
    [turn] = build_program(loop)
    assert isinstance(turn, While)
    *_, switch = turn.body
    assert isinstance(switch, Switch)
    return switch.bodies


def _tensors(loop: Loop) -> list[Tensor]:
    return [getattr(part, f.name) for part in (loop.state, loop.batch) for f in fields(part)]
