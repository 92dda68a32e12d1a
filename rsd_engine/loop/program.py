"""The loop as data: a small tree that executors walk, capture or check.

Functions in the tree read and write device tensors and never return a value, so nothing between
two nodes can depend on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Run one op."""

    name: str
    fn: Callable[[], None]


@dataclass(frozen=True)
class Switch:
    """Run the body that `index` names; none if it is past the last one."""

    index: Tensor  # [1] int32
    bodies: tuple[Block, ...]


@dataclass(frozen=True)
class While:
    """Run `body` again and again as long as `flag` is not 0; tested before every turn."""

    flag: Tensor  # [1] int32
    body: Block


Node = Call | Switch | While
Block = tuple[Node, ...]
