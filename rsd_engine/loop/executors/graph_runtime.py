"""What the device loop asks of CUDA graphs, few enough calls to be simulated.

A graph is a chain of nodes. A handle holds the value that a conditional node tests: 0 when a
launch begins, then what the last `Arm` has set.
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
"""The nodes that the next one must follow."""


class GraphError(RuntimeError):
    """A graph could not be captured. The process cannot go on using the device."""


class GraphRefused(GraphError):
    """CUDA refuses to make a captured graph executable. Other graphs may still work."""


class Conditional(Enum):
    """Kinds of conditional nodes."""

    WHILE = "while"  # tested before every turn, the first one too
    IF = "if"
    SWITCH = "switch"  # the body with this number, none if it is past the last one


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
        """A new handle of the root graph: only its handles are reset at a launch."""

    def capture(self, graph: Graph, after: Frontier, work: Sequence[GraphItem]) -> Frontier:
        """Adds the launches of `work` in order; without work, one empty node.

        Raises:
            GraphError: an op cannot be captured; the message names it.
        """

    def add_conditional(
        self, graph: Graph, after: Frontier, kind: Conditional, handle: int, num_bodies: int
    ) -> tuple[Frontier, Sequence[Graph]]:
        """Adds a conditional node; returns also its bodies, empty graphs to be filled."""

    def instantiate(self) -> None:
        """Makes the graph executable, once it is complete.

        Raises:
            GraphRefused: CUDA refuses it; the graph has been freed.
        """

    def launch(self) -> None:
        """Begins to run the graph."""

    def finished(self) -> bool:
        """True once the launch has ended."""

    def close(self) -> None:
        """Frees the graph; no launch may be running."""
