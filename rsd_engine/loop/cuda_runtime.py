"""The graph of the device loop on a GPU: captured on one stream, body by body.

A body is captured straight into the graph of its conditional node; the capture of the parent ends
before the node and begins again after it. One stream means one set of library workspaces for all
bodies, which never overlap. A capture that fails leaves the process unfit to use the device: a
known fault of drivers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from cuda.bindings import driver as cuda

from rsd_engine.loop.arm_kernel import ArmKernel
from rsd_engine.loop.cuda_calls import (
    SWITCH_VERSION,
    add_node,
    begin_capture,
    captured_frontier,
    check,
    cuda_version,
)
from rsd_engine.loop.graph_runtime import (
    Arm,
    Conditional,
    Frontier,
    Graph,
    GraphError,
    GraphRefused,
    Work,
)
from rsd_engine.loop.program import Block, Call, calls
from rsd_kernels.triton_support import overlapping

logger = logging.getLogger("rsd_engine")

_ACTIVE = cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
_CONDITIONAL = cuda.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
_ASSIGN_DEFAULT = cuda.CU_GRAPH_COND_ASSIGN_DEFAULT
_KINDS = {
    Conditional.WHILE: cuda.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_WHILE,
    Conditional.IF: cuda.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF,
    Conditional.SWITCH: cuda.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH,
}


class CaptureStream:
    """The stream that graphs are captured and launched on, warmed up by every op.

    Kernels are compiled, libraries take their workspaces and modules are loaded in the warm-up,
    since none of it may happen during a capture. What ops still allocate comes from a pool that
    lives as long as the graphs; `allocations` counts it by op, and it should stay empty.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.handle: int = self.stream.cuda_stream
        self.context = check(cuda.cuStreamGetCtx(self.handle))
        self.allocations: Counter[str] = Counter()
        self._pool = torch.cuda.MemPool()

    def warm_up(self, program: Block) -> None:
        """Runs every op of an idle state: no slot is filled, so nothing changes."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for call in calls(program):
                call.fn()
        self.stream.synchronize()  # host read: before any launch

    def enter(self) -> None:
        """Makes the device's context this thread's: it may be one that never used the device."""
        check(cuda.cuCtxSetCurrent(self.context))

    def begin(self, graph: Graph, after: Frontier) -> None:
        """From here on what runs is captured into `graph`, behind the nodes `after`."""
        begin_capture(self.handle, graph, after)

    def end(self) -> Frontier:
        """Ends the capture; the nodes that the next one follows."""
        frontier = captured_frontier(self.handle)
        check(cuda.cuStreamEndCapture(self.handle))
        return frontier

    def run(self, name: str, fn: Callable[[], None]) -> None:
        """Runs an op while this stream captures.

        Raises:
            GraphError: it cannot be captured.
        """
        before = self._num_allocations()
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.stream(self.stream))
            stack.enter_context(torch.cuda.use_mem_pool(self._pool))
            try:
                fn()
                if check(cuda.cuStreamIsCapturing(self.handle)) != _ACTIVE:
                    raise GraphError("it has invalidated the capture")
            except Exception as error:
                raise GraphError(
                    f"{name} cannot be captured into a CUDA graph: {error}. The process cannot "
                    "use the device any more; executor='eager' runs without graphs"
                ) from error
        made = self._num_allocations() - before
        if made:
            self.allocations[name] += made

    def _num_allocations(self) -> int:
        stats = torch.cuda.memory_stats(self.device)
        return int(stats.get("allocation.all.allocated", 0))


class CudaGraphRuntime:
    """See `GraphRuntime`."""

    def __init__(self, capture: CaptureStream, *, has_switch: bool | None = None) -> None:
        self.has_switch = cuda_version() >= SWITCH_VERSION if has_switch is None else has_switch
        self.root: Graph = check(cuda.cuGraphCreate(0))
        self._capture = capture
        self._arm = ArmKernel(capture.device)
        self._done = torch.cuda.Event()
        self._executable: Any = None

    def create_handle(self) -> int:
        return int(
            check(
                cuda.cuGraphConditionalHandleCreate(
                    self.root, self._capture.context, 0, _ASSIGN_DEFAULT
                )
            )
        )

    def capture(self, graph: Graph, after: Frontier, work: Sequence[Work]) -> Frontier:
        if not work:
            return (check(cuda.cuGraphAddEmptyNode(graph, list(after) or None, len(after))),)
        launches = [self._launch_of(name, item) for name, item in _joined(work)]
        self._capture.begin(graph, after)
        for name, launch in launches:
            self._capture.run(name, launch)
        return self._capture.end()

    def add_conditional(
        self, graph: Graph, after: Frontier, kind: Conditional, handle: int, num_bodies: int
    ) -> tuple[Frontier, Sequence[Graph]]:
        params = cuda.CUgraphNodeParams()
        params.type = _CONDITIONAL
        params.conditional.handle = cuda.CUgraphConditionalHandle(handle)
        params.conditional.type = _KINDS[kind]
        params.conditional.size = num_bodies
        params.conditional.ctx = self._capture.context
        node = add_node(graph, after, params)
        # Copied: what phGraph_out gives points into `params`, which ends here.
        bodies = [cuda.CUgraph(int(body)) for body in params.conditional.phGraph_out]
        return (node,), bodies

    def instantiate(self) -> None:
        free, _ = torch.cuda.mem_get_info(self._capture.device)
        try:
            self._executable = check(cuda.cuGraphInstantiate(self.root, 0))
            check(cuda.cuGraphUpload(self._executable, self._capture.handle))
        except GraphError as error:
            self.close()
            advice = "executor='host-graphs' runs without conditional nodes"
            if overlapping(1):
                advice = "RSD_OVERLAP_KERNELS=0 starts no kernel early; " + advice
            raise GraphRefused(f"the graph cannot be made executable: {error}; {advice}") from error
        self._capture.stream.synchronize()  # host read: before any launch
        left, _ = torch.cuda.mem_get_info(self._capture.device)
        logger.info("device loop: the graph takes %.1f MB on the device", (free - left) / 1e6)

    def launch(self) -> None:
        self._capture.enter()
        stream = self._capture.stream
        stream.wait_stream(torch.cuda.current_stream(self._capture.device))
        check(cuda.cuGraphLaunch(self._executable, self._capture.handle))
        self._done.record(stream)

    def finished(self) -> bool:
        return self._done.query()

    def close(self) -> None:
        if self.root is None:
            return
        self._capture.enter()
        if self._executable is not None:
            check(cuda.cuGraphExecDestroy(self._executable))
        check(cuda.cuGraphDestroy(self.root))
        self._arm.close()
        self.root = self._executable = None

    def _launch_of(self, name: str, item: Call | list[Arm]) -> tuple[str, Callable[[], None]]:
        if isinstance(item, Call):
            return name, item.fn
        arguments = self._arm.prepare(item)
        return name, lambda: self._arm.launch(arguments, self._capture.handle)


def _joined(work: Sequence[Work]) -> list[tuple[str, Call | list[Arm]]]:
    """Arms that follow one another become one launch."""
    joined: list[tuple[str, Call | list[Arm]]] = []
    for item in work:
        if isinstance(item, Call):
            joined.append((item.name, item))
        elif joined and isinstance(joined[-1][1], list):
            joined[-1][1].append(item)
        else:
            joined.append(("arm", [item]))
    return joined


class CudaRecorder:
    """See `Recorder`: every run of ops is one graph, and its last nodes copy flags to the host."""

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
                copy = partial(_copy, self._mirrors[id(flag)], flag)
                self._capture.run(f"{op.name}: a flag to the host", copy)
        self._capture.end()
        executable = check(cuda.cuGraphInstantiate(graph, 0))
        self._graphs.append((graph, executable))
        return lambda: self._replay(executable)

    def begin(self) -> None:
        stream = self._capture.stream
        stream.wait_stream(torch.cuda.current_stream(self._capture.device))

    def read(self, flag: torch.Tensor) -> int:
        self._capture.stream.synchronize()  # host read: one word a tick
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


def _copy(mirror: torch.Tensor, flag: torch.Tensor) -> None:
    mirror.copy_(flag, non_blocking=True)
