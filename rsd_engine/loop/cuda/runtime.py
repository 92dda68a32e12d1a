"""The graph of the device loop on a GPU, captured on one stream.

Each body is captured straight into the graph of its conditional node; the capture of the parent
ends before that node and begins anew after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cuda.bindings import driver as cuda

from rsd_engine.loop.cuda.arm_kernel import ArmKernel
from rsd_engine.loop.cuda.calls import SWITCH_VERSION, add_node, check, cuda_version
from rsd_engine.loop.cuda.capture_stream import CaptureStream
from rsd_engine.loop.executors.graph_runtime import (
    Arm,
    Conditional,
    Frontier,
    Graph,
    GraphError,
    GraphItem,
    GraphRefused,
)
from rsd_engine.loop.program import Call
from rsd_kernels.launch import overlapping

logger = logging.getLogger("rsd_engine")

_CONDITIONAL = cuda.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
_ASSIGN_DEFAULT = cuda.CU_GRAPH_COND_ASSIGN_DEFAULT
_KINDS = {
    Conditional.WHILE: cuda.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_WHILE,
    Conditional.IF: cuda.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF,
    Conditional.SWITCH: cuda.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH,
}


class CudaGraphRuntime:
    """The `GraphRuntime` of a GPU."""

    def __init__(self, capture: CaptureStream, *, has_switch: bool | None = None) -> None:
        self.has_switch = cuda_version() >= SWITCH_VERSION if has_switch is None else has_switch
        self.root: Graph = check(cuda.cuGraphCreate(0))
        self._capture = capture
        self._arm = ArmKernel(capture.device)
        self._done = torch.cuda.Event()
        self._executable: Any = None

    def create_handle(self) -> int:
        create, context = cuda.cuGraphConditionalHandleCreate, self._capture.context
        return int(check(create(self.root, context, 0, _ASSIGN_DEFAULT)))

    def capture(self, graph: Graph, after: Frontier, work: Sequence[GraphItem]) -> Frontier:
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
        # Copied: phGraph_out points into `params`, which does not outlive this call.
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
            raise GraphRefused(
                f"CUDA does not make the graph of the device loop executable: {error}; {advice}"
            ) from error
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


def _joined(work: Sequence[GraphItem]) -> list[tuple[str, Call | list[Arm]]]:
    """The work by launch: arms that follow one another share one."""
    joined: list[tuple[str, Call | list[Arm]]] = []
    for item in work:
        if isinstance(item, Call):
            joined.append((item.name, item))
        elif joined and isinstance(joined[-1][1], list):
            joined[-1][1].append(item)
        else:
            joined.append(("arm", [item]))
    return joined
