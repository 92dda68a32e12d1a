"""Turns a program into one graph with conditional nodes.

Triton kernels cannot set a handle, so after each op that sets flags comes a node that arms the
handles of all conditional nodes that test those flags.
"""

from __future__ import annotations

from rsd_engine.loop.executors.graph_runtime import (
    Arm,
    Conditional,
    Frontier,
    Graph,
    GraphItem,
    GraphRuntime,
)
from rsd_engine.loop.program import Block, Call, Node, Switch, While, check_program


def build_graph(program: Block, runtime: GraphRuntime) -> None:
    """Builds the program into `runtime`, which can then be launched.

    Raises:
        ProgramError: a flag is read before it is set.
        GraphError: an op cannot be captured, or CUDA refuses the graph (`GraphRefused`).
    """
    check_program(program)
    _Builder(program, runtime).build()


class _Builder:
    def __init__(self, program: Block, runtime: GraphRuntime) -> None:
        self._program = program
        self._runtime = runtime
        self._handles: dict[int, list[int]] = {}  # of a conditional node, by its id
        self._arms: dict[int, list[Arm]] = {}  # by the id of the flag
        self._create_handles(program)

    def build(self) -> None:
        """The host sets the flag of a While at the top, so the graph begins by arming it."""
        entry = [
            arm
            for node in self._program
            if isinstance(node, While)
            for arm in self._arms[id(node.flag)]
        ]
        self._block(self._program, self._runtime.root, entry)
        self._runtime.instantiate()

    def _create_handles(self, block: Block) -> None:
        for node in block:
            if isinstance(node, While):
                handle = self._runtime.create_handle()
                self._handles[id(node)] = [handle]
                self._arms.setdefault(id(node.flag), []).append(Arm(handle, node.flag))
                self._create_handles(node.body)
            elif isinstance(node, Switch):
                arms = self._switch_arms(node)
                self._handles[id(node)] = [arm.handle for arm in arms]
                self._arms.setdefault(id(node.index), []).extend(arms)
                for body in node.bodies:
                    self._create_handles(body)

    def _switch_arms(self, node: Switch) -> list[Arm]:
        if self._runtime.has_switch:
            return [Arm(self._runtime.create_handle(), node.index)]
        return [
            Arm(self._runtime.create_handle(), node.index, equals=i)
            for i, body in enumerate(node.bodies)
            if body
        ]

    def _block(self, block: Block, graph: Graph, entry: list[Arm] | None = None) -> None:
        """Captures ops that follow one another together, up to the next conditional node."""
        after: Frontier = ()
        work: list[GraphItem] = list(entry or ())
        for node in block:
            if isinstance(node, Call):
                work.append(node)
                work += [arm for flag in node.sets for arm in self._arms.get(id(flag), ())]
                continue
            if work:
                after = self._runtime.capture(graph, after, work)
            work = []
            after = self._conditional(node, graph, after)
        if work or not block:  # an empty body hangs some drivers
            self._runtime.capture(graph, after, work)

    def _conditional(self, node: Node, graph: Graph, after: Frontier) -> Frontier:
        handles = self._handles[id(node)]
        if isinstance(node, While):
            return self._add(graph, after, Conditional.WHILE, handles[0], (node.body,))
        assert isinstance(node, Switch)
        if self._runtime.has_switch:
            return self._add(graph, after, Conditional.SWITCH, handles[0], node.bodies)
        bodies = [body for body in node.bodies if body]
        for handle, body in zip(handles, bodies, strict=True):
            after = self._add(graph, after, Conditional.IF, handle, (body,))
        return after

    def _add(
        self,
        graph: Graph,
        after: Frontier,
        kind: Conditional,
        handle: int,
        bodies: tuple[Block, ...],
    ) -> Frontier:
        after, graphs = self._runtime.add_conditional(graph, after, kind, handle, len(bodies))
        for body, inner in zip(bodies, graphs, strict=True):
            self._block(body, inner)
        return after
