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
from cuda.bindings import runtime as cuda

from rsd_engine.loop.arm_kernel import ArmKernel
from rsd_engine.loop.cuda_calls import SWITCH_VERSION, check, cuda_version
from rsd_engine.loop.graph_runtime import Arm, Conditional, Frontier, Graph, GraphError, Work
from rsd_engine.loop.program import Block, Call, calls
from rsd_kernels.triton_support import overlapping

logger = logging.getLogger("rsd_engine")

_RELAXED = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
_ACTIVE = cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
_ASSIGN_DEFAULT = int(cuda.cudaGraphConditionalHandleFlags.cudaGraphCondAssignDefault)
_KINDS = {
    Conditional.WHILE: cuda.cudaGraphConditionalNodeType.cudaGraphCondTypeWhile,
    Conditional.IF: cuda.cudaGraphConditionalNodeType.cudaGraphCondTypeIf,
    Conditional.SWITCH: cuda.cudaGraphConditionalNodeType.cudaGraphCondTypeSwitch,
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
        self.allocations: Counter[str] = Counter()
        self._pool = torch.cuda.MemPool()

    def warm_up(self, program: Block) -> None:
        """Runs every op of an idle state: no slot is filled, so nothing changes."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for call in calls(program):
                call.fn()
        self.stream.synchronize()  # host read: before any launch

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
                if check(cuda.cudaStreamIsCapturing(self.stream.cuda_stream)) != _ACTIVE:
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
        self.root: Graph = check(cuda.cudaGraphCreate(0))
        self._capture = capture
        self._handle = capture.stream.cuda_stream
        self._arm = ArmKernel(capture.device)
        self._done = torch.cuda.Event()
        self._executable: Any = None

    def create_handle(self) -> int:
        return int(check(cuda.cudaGraphConditionalHandleCreate(self.root, 0, _ASSIGN_DEFAULT)))

    def capture(self, graph: Graph, after: Frontier, work: Sequence[Work]) -> Frontier:
        if not work:
            return (check(cuda.cudaGraphAddEmptyNode(graph, list(after) or None, len(after))),)
        launches = [self._launch_of(name, item) for name, item in _joined(work)]
        check(
            cuda.cudaStreamBeginCaptureToGraph(
                self._handle, graph, list(after) or None, None, len(after), _RELAXED
            )
        )
        for name, launch in launches:
            self._capture.run(name, launch)
        *_, nodes, _, count = check(cuda.cudaStreamGetCaptureInfo(self._handle))
        check(cuda.cudaStreamEndCapture(self._handle))
        return tuple(nodes[:count])

    def add_conditional(
        self, graph: Graph, after: Frontier, kind: Conditional, handle: int, num_bodies: int
    ) -> tuple[Frontier, Sequence[Graph]]:
        params = cuda.cudaGraphNodeParams()
        params.type = cuda.cudaGraphNodeType.cudaGraphNodeTypeConditional
        params.conditional.handle = cuda.cudaGraphConditionalHandle(handle)
        params.conditional.type = _KINDS[kind]
        params.conditional.size = num_bodies
        node = check(cuda.cudaGraphAddNode(graph, list(after) or None, None, len(after), params))
        # Copied: what phGraph_out gives points into `params`, which ends here.
        bodies = [cuda.cudaGraph_t(int(body)) for body in params.conditional.phGraph_out]
        return (node,), bodies

    def instantiate(self) -> None:
        free, _ = torch.cuda.mem_get_info(self._capture.device)
        try:
            self._executable = check(cuda.cudaGraphInstantiate(self.root, 0))
        except GraphError as error:
            advice = "executor='host-graphs' runs without conditional nodes"
            if overlapping(1):
                advice = "RSD_OVERLAP_KERNELS=0 starts no kernel early; " + advice
            raise GraphError(f"the graph cannot be made executable: {error}; {advice}") from error
        check(cuda.cudaGraphUpload(self._executable, self._handle))
        self._capture.stream.synchronize()  # host read: before any launch
        left, _ = torch.cuda.mem_get_info(self._capture.device)
        logger.info("device loop: the graph takes %.1f MB on the device", (free - left) / 1e6)

    def launch(self) -> None:
        stream = self._capture.stream
        stream.wait_stream(torch.cuda.current_stream(self._capture.device))
        check(cuda.cudaGraphLaunch(self._executable, self._handle))
        self._done.record(stream)

    def finished(self) -> bool:
        return self._done.query()

    def close(self) -> None:
        if self._executable is not None:
            check(cuda.cudaGraphExecDestroy(self._executable))
            check(cuda.cudaGraphDestroy(self.root))
            self._executable = None

    def _launch_of(self, name: str, item: Call | list[Arm]) -> tuple[str, Callable[[], None]]:
        if isinstance(item, Call):
            return name, item.fn
        arguments = self._arm.prepare(item)
        return name, lambda: self._arm.launch(arguments, self._handle)


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
        self._handle = capture.stream.cuda_stream
        self._mirrors: dict[int, torch.Tensor] = {}  # by the id of the flag
        self._graphs: list[tuple[Any, Any]] = []

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        for flag in (flag for op in ops for flag in op.sets):
            self._mirrors[id(flag)] = torch.zeros(1, dtype=flag.dtype, pin_memory=True)
        graph = check(cuda.cudaGraphCreate(0))
        check(cuda.cudaStreamBeginCaptureToGraph(self._handle, graph, None, None, 0, _RELAXED))
        for op in ops:
            self._capture.run(op.name, op.fn)
            for flag in op.sets:
                copy = partial(_copy, self._mirrors[id(flag)], flag)
                self._capture.run(f"{op.name}: a flag to the host", copy)
        check(cuda.cudaStreamEndCapture(self._handle))
        executable = check(cuda.cudaGraphInstantiate(graph, 0))
        self._graphs.append((graph, executable))
        return lambda: self._replay(executable)

    def begin(self) -> None:
        stream = self._capture.stream
        stream.wait_stream(torch.cuda.current_stream(self._capture.device))

    def read(self, flag: torch.Tensor) -> int:
        self._capture.stream.synchronize()  # host read: one word a tick
        return int(self._mirrors[id(flag)])

    def close(self) -> None:
        for graph, executable in self._graphs:
            check(cuda.cudaGraphExecDestroy(executable))
            check(cuda.cudaGraphDestroy(graph))
        self._graphs.clear()

    def _replay(self, executable: Any) -> None:
        check(cuda.cudaGraphLaunch(executable, self._handle))


def _copy(mirror: torch.Tensor, flag: torch.Tensor) -> None:
    mirror.copy_(flag, non_blocking=True)
