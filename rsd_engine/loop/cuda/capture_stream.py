"""The stream on which graphs are captured and run.

With one stream all graphs, which never overlap, share one set of library workspaces. After a failed
capture the process cannot use the device any more: a known fault of drivers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import torch
from cuda.bindings import driver as cuda

from rsd_engine.loop.cuda.calls import begin_capture, captured_frontier, check
from rsd_engine.loop.executors.graph_runtime import Frontier, Graph, GraphError
from rsd_engine.loop.program import Block, calls

_ACTIVE = cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE


class CaptureStream:
    """The stream that graphs are captured and launched on.

    The warm-up compiles kernels, loads modules and lets libraries take their workspaces: none of it
    may happen during a capture. What ops still allocate comes from a pool that lives as long as the
    graphs; `allocations` counts it by op, and should stay empty.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.handle: int = self.stream.cuda_stream
        self.context = check(cuda.cuStreamGetCtx(self.handle))
        self.allocations: Counter[str] = Counter()
        self._pool = torch.cuda.MemPool()

    def warm_up(self, program: Block) -> None:
        """Runs every op once, while no slot is filled and therefore nothing changes."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for call in calls(program):
                call.fn()
        self.stream.synchronize()  # host read: before any launch

    def enter(self) -> None:
        """Makes the device's context current, in case this thread never used the device."""
        check(cuda.cuCtxSetCurrent(self.context))

    def begin(self, graph: Graph, after: Frontier) -> None:
        """Captures what runs from here on into `graph`, behind the nodes `after`."""
        begin_capture(self.handle, graph, after)

    def end(self) -> Frontier:
        """Ends the capture; returns the nodes that the next one must follow."""
        frontier = captured_frontier(self.handle)
        check(cuda.cuStreamEndCapture(self.handle))
        return frontier

    def run(self, name: str, fn: Callable[[], None]) -> None:
        """Runs an op while this stream captures.

        Raises:
            GraphError: the op cannot be captured.
        """
        before = self._num_allocations()
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.stream(self.stream))
            stack.enter_context(torch.cuda.use_mem_pool(self._pool))
            try:
                fn()
                if check(cuda.cuStreamIsCapturing(self.handle)) != _ACTIVE:
                    raise GraphError("it invalidated the capture")
            except Exception as error:
                raise GraphError(
                    f"{name} cannot be captured into a CUDA graph: {error}. This process cannot "
                    "use the device any more; in a new one executor='eager' runs without graphs"
                ) from error
        made = self._num_allocations() - before
        if made:
            self.allocations[name] += made

    def _num_allocations(self) -> int:
        stats = torch.cuda.memory_stats(self.device)
        return int(stats.get("allocation.all.allocated", 0))
