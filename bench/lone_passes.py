"""What the passes of a run cost alone: each body of the loop as a plain graph, replayed by itself.

A pass is the body of one role and one number of rows. A counting run of a scene says how often each
body runs and keeps the loop's state of one such moment; the body is then replayed from that state,
which is put back before every replay, outside the clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bench.timing import Timing
from rsd_engine.loop.direct_recorder import DirectRecorder
from rsd_engine.loop.eager import EagerExecutor
from rsd_engine.loop.host_graphs import Recorder
from rsd_engine.loop.program import Block, Call, Switch, While, calls
from rsd_engine.loop.rsd import Loop, build_program
from rsd_engine.loop.timed_recorder import Clock, HostClock, StreamClock
from rsd_kernels.slot_state import Role

_HEAD_START = 400_000  # cycles for which the device sleeps while the host enqueues a replay


class Snapshot:
    """The loop's state and rows at one moment."""

    def __init__(self, loop: Loop) -> None:
        self._kept = [(place, place.clone()) for place in _places(loop)]

    def restore(self) -> None:
        for place, kept in self._kept:
            place.copy_(kept)


class CountingExecutor(EagerExecutor):
    """The eager executor, which counts its passes by body and keeps a state of each."""

    def __init__(self, loop: Loop, *, ticks_per_launch: int) -> None:
        self.counts: Counter[int] = Counter()
        self.snapshots: dict[int, Snapshot] = {}
        self._loop = loop
        flag, plan, switch = _parts(loop)
        count = Call("count", self._count)
        program = (While(flag, (plan, count, switch)),)
        super().__init__(program, ticks_per_launch=ticks_per_launch)

    def _count(self) -> None:
        """The kept state is of a pass in the later half: contexts have grown."""
        body = int(self._loop.state.pass_body)  # host read: this executor's way
        self.counts[body] += 1
        if self.counts[body].bit_count() == 1:
            self.snapshots[body] = Snapshot(self._loop)


@dataclass(frozen=True)
class LonePass:
    """One body, alone."""

    role: str
    rows: int
    count: int  # in the counting run
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
    """Records bodies of a loop, once each, and times their replays.

    Raises:
        GraphError: a body cannot be captured.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._bodies = _parts(loop)[2].bodies
        self._buckets: list[int] = loop.state.row_buckets.tolist()
        self._replays: dict[int, Callable[[], None]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._clock: Clock = HostClock()
        self._recorder: Recorder = DirectRecorder()
        device = loop.state.length.device
        if device.type == "cuda":
            from rsd_engine.loop.cuda_runtime import CaptureStream, CudaRecorder

            capture = CaptureStream(device)
            before = Snapshot(loop)  # the last pass still stands in the rows: ops act on them
            capture.warm_up(build_program(loop))
            before.restore()
            self._recorder = CudaRecorder(capture)
            self._stream, self._clock = capture.stream, StreamClock(capture.stream)

    def time(self, counted: CountingExecutor, runs: int) -> list[LonePass]:
        """Every body of the counting run; the state is left as it was."""
        before = Snapshot(self._loop)
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
            if self._stream is not None:  # the launch itself shall not be in the time
                with torch.cuda.stream(self._stream):
                    torch.cuda._sleep(_HEAD_START)
            start = self._clock.mark()
            replay()
            marks.append((start, self._clock.mark()))
            if self._stream is not None:
                self._stream.synchronize()  # the next restore comes after this replay
        return Timing(tuple(self._clock.seconds(*pair) for pair in marks[1:]))


def _parts(loop: Loop) -> tuple[Tensor, Call, Switch]:
    """The flag of the program's While, its plan, and the switch over the bodies."""
    program: Block = build_program(loop)
    [turn] = program
    assert isinstance(turn, While)
    plan, switch = turn.body
    assert isinstance(plan, Call) and isinstance(switch, Switch)
    return turn.flag, plan, switch


def _places(loop: Loop) -> list[Tensor]:
    return [getattr(part, f.name) for part in (loop.state, loop.batch) for f in fields(part)]
