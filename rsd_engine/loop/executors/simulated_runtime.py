"""A graph runtime that needs no GPU: it keeps the node tree and walks it as CUDA would.

The same code builds the device loop into it as into CUDA, so the graph can be tested, and looked
at, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rsd_engine.loop.executors.graph_runtime import (
    Arm,
    Conditional,
    Frontier,
    GraphError,
    GraphItem,
)
from rsd_engine.loop.program import Call


@dataclass(frozen=True, eq=False)
class SimulatedNode:
    """An op, an armed handle, or a conditional node with its bodies."""

    work: GraphItem | None = None
    kind: Conditional | None = None
    handle: int = -1
    bodies: tuple[SimulatedGraph, ...] = ()


@dataclass(frozen=True, eq=False)
class SimulatedGraph:
    """A chain of nodes."""

    nodes: list[SimulatedNode] = field(default_factory=list)

    def append(self, after: Frontier, node: SimulatedNode) -> Frontier:
        """Adds a node; `after` must be the end of the chain, or the graph would branch."""
        if after != tuple(self.nodes[-1:]):
            raise GraphError("a node must follow the last one of its graph")
        self.nodes.append(node)
        return (node,)

    def walk(self) -> Iterator[SimulatedNode]:
        """Every node, bodies included."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.walk()


class SimulatedRuntime:
    """See `GraphRuntime`. A launch runs to its end at once."""

    def __init__(self, *, has_switch: bool = True) -> None:
        self.has_switch = has_switch
        self.root = SimulatedGraph()
        self.num_launches = 0
        self._values: list[int] = []  # by handle
        self._ready = False

    def create_handle(self) -> int:
        self._values.append(0)
        return len(self._values) - 1

    def capture(
        self, graph: SimulatedGraph, after: Frontier, work: Sequence[GraphItem]
    ) -> Frontier:
        if not work:
            return graph.append(after, SimulatedNode())
        for item in work:
            after = graph.append(after, SimulatedNode(work=item))
        return after

    def add_conditional(
        self,
        graph: SimulatedGraph,
        after: Frontier,
        kind: Conditional,
        handle: int,
        num_bodies: int,
    ) -> tuple[Frontier, Sequence[SimulatedGraph]]:
        bodies = tuple(SimulatedGraph() for _ in range(num_bodies))
        node = SimulatedNode(kind=kind, handle=handle, bodies=bodies)
        return graph.append(after, node), bodies

    def instantiate(self) -> None:
        """Refuses what CUDA refuses: a handle that no node tests, and a body without nodes."""
        nodes = list(self.root.walk())
        unused = set(range(len(self._values))) - {node.handle for node in nodes}
        if unused:
            raise GraphError(f"no conditional node tests the handles {sorted(unused)}")
        if any(not body.nodes for node in nodes for body in node.bodies):
            raise GraphError("a body of a conditional node is empty")
        self._ready = True

    def launch(self) -> None:
        if not self._ready:
            raise GraphError("the graph was launched before it was instantiated")
        self.num_launches += 1
        self._values = [0] * len(self._values)  # reset once per launch, not once per turn
        self._run(self.root)

    def finished(self) -> bool:
        return True

    def close(self) -> None:
        self._ready = False

    def _run(self, graph: SimulatedGraph) -> None:
        for node in graph.nodes:
            if isinstance(node.work, Call):
                node.work.run()
            elif isinstance(node.work, Arm):
                self._arm(node.work)
            elif node.kind is not None:
                self._run_conditional(node.kind, node)

    def _arm(self, arm: Arm) -> None:
        value = int(arm.flag)  # host read: stands in for the kernel that arms handles
        self._values[arm.handle] = value if arm.equals is None else int(value == arm.equals)

    def _run_conditional(self, kind: Conditional, node: SimulatedNode) -> None:
        if kind is Conditional.WHILE:
            while self._values[node.handle]:
                self._run(node.bodies[0])
        elif kind is Conditional.IF:
            if self._values[node.handle]:
                self._run(node.bodies[0])
        elif self._values[node.handle] < len(node.bodies):
            self._run(node.bodies[self._values[node.handle]])
