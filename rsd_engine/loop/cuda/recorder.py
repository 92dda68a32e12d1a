"""The graphs that the executor `host-graphs` replays on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from cuda.bindings import driver as cuda

from rsd_engine.loop.cuda.calls import check
from rsd_engine.loop.cuda.capture_stream import CaptureStream
from rsd_engine.loop.program import Call


class CudaRecorder:
    """A `Recorder` of CUDA graphs, in which copies to pinned memory bring the flags to the host."""

    def __init__(self, capture: CaptureStream) -> None:
        self._capture = capture
        self._mirrors: dict[int, torch.Tensor] = {}  # by the id of the flag
        self._graphs: list[tuple[Any, Any]] = []

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        for flag in (flag for op in ops for flag in op.sets):
            mirror = torch.zeros_like(flag, device="cpu", pin_memory=flag.is_cuda)
            self._mirrors[id(flag)] = mirror
        graph = check(cuda.cuGraphCreate(0))
        self._capture.begin(graph, ())
        for op in ops:
            self._capture.run(op.name, op.fn)
            for flag in op.sets:
                copy = partial(copy_to_host, self._mirrors[id(flag)], flag)
                self._capture.run(f"{op.name}: copy of a flag", copy)
        self._capture.end()
        executable = check(cuda.cuGraphInstantiate(graph, 0))
        self._graphs.append((graph, executable))
        return lambda: self._replay(executable)

    def begin(self) -> None:
        stream = self._capture.stream
        stream.wait_stream(torch.cuda.current_stream(self._capture.device))

    def read(self, flag: torch.Tensor) -> int:
        self._capture.stream.synchronize()  # host read: as this executor does, every tick
        return int(self._mirrors[id(flag)])

    def close(self) -> None:
        self._capture.enter()
        for graph, executable in self._graphs:
            check(cuda.cuGraphExecDestroy(executable))
            check(cuda.cuGraphDestroy(graph))
        self._graphs.clear()

    def _replay(self, executable: Any) -> None:
        self._capture.enter()
        check(cuda.cuGraphLaunch(executable, self._capture.handle))


def copy_to_host(mirror: torch.Tensor, flag: torch.Tensor) -> None:
    """Queues the copy of a flag into its pinned mirror on the current stream."""
    mirror.copy_(flag, non_blocking=True)
