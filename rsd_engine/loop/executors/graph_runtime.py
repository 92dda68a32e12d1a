"""What the device loop asks of CUDA, in terms small enough to be simulated.

A graph is a chain of nodes. A handle holds the value that a conditional node tests; it keeps the
value until an `Arm` sets it again, and is 0 when a launch begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from torch import Tensor

from rsd_engine.loop.program import Call

Graph = Any
Frontier = tuple[Any, ...]
"""The nodes after which the next one comes."""


class GraphError(RuntimeError):
    """The device loop could not be built. The process cannot go on using the device."""


class GraphRefused(GraphError):
    """A graph was captured whole, and CUDA does not make it executable. Other graphs may do."""


class Conditional(Enum):
    """Kinds of conditional nodes."""

    WHILE = "while"  # tested before every turn, the first one too
    IF = "if"
    SWITCH = "switch"  # the body that the value names, none if it is past the last one


@dataclass(frozen=True)
class Arm:
    """Set a handle from a flag: to its value, or to whether it equals `equals`."""

    handle: int
    flag: Tensor  # [1] int32
    equals: int | None = None


GraphItem = Call | Arm


class GraphRuntime(Protocol):
    """Builds one graph and launches it."""

    has_switch: bool  # false: every body of a Switch becomes an IF
    root: Graph

    def create_handle(self) -> int:
        """A new handle, of the root graph: a handle must belong to it to be reset at a launch."""

    def capture(self, graph: Graph, after: Frontier, work: Sequence[GraphItem]) -> Frontier:
        """Adds what `work` launches, in order; without work, a node that does nothing.

        Raises:
            GraphError: names the op whose launch cannot be captured.
        """

    def add_conditional(
        self, graph: Graph, after: Frontier, kind: Conditional, handle: int, num_bodies: int
    ) -> tuple[Frontier, Sequence[Graph]]:
        """Adds a conditional node; its bodies are empty graphs to be filled."""

    def instantiate(self) -> None:
        """Makes the graph ready to be launched, once it is built.

        Raises:
            GraphRefused: CUDA does not take it; nothing of it is left.
        """

    def launch(self) -> None:
        """Begins to run the graph."""

    def finished(self) -> bool:
        """True once the launch has ended."""

    def close(self) -> None:
        """Frees the graph; no launch may be running."""
