"""The loop as data: a small tree that executors run, capture into graphs, or check.

Functions in the tree read and write device tensors and return nothing, so what runs between two
nodes cannot depend on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


class ProgramError(ValueError):
    """A program that no executor can run as it is meant."""


class OpFailed(RuntimeError):
    """An op raised the error that is this one's cause; `op` is its name.

    Ops that a graph replays fail otherwise: their errors are those of the device.
    """

    def __init__(self, op: str) -> None:
        super().__init__(f"{op} failed")
        self.op = op


@dataclass(frozen=True)
class Call:
    """Run one op. `sets` names every flag that it may write."""

    name: str
    fn: Callable[[], None]
    sets: tuple[Tensor, ...] = ()  # flags, each [1] int32

    def run(self) -> None:
        """Runs it; OpFailed if it raises an error."""
        try:
            self.fn()
        except Exception as error:
            raise OpFailed(self.name) from error


@dataclass(frozen=True)
class Switch:
    """Run the body with the number `index`; none if it is past the last one."""

    index: Tensor  # [1] int32
    bodies: tuple[Block, ...]


@dataclass(frozen=True)
class While:
    """Run `body` as long as `flag` is not 0, tested before every turn."""

    flag: Tensor  # [1] int32
    body: Block


Node = Call | Switch | While
Block = tuple[Node, ...]


def calls(block: Block) -> Iterator[Call]:
    """Every op of a program, in order."""
    for node in block:
        if isinstance(node, Call):
            yield node
        elif isinstance(node, While):
            yield from calls(node.body)
        else:
            for body in node.bodies:
                yield from calls(body)


def check_program(program: Block) -> None:
    """Raises ProgramError unless every flag is set before it is read.

    The index of a Switch must be set by an op before it in the same block. The flag of a While at
    the top is set by the host; every While needs an op in its body that sets its flag, or it would
    never end.
    """
    _check_block(program, set_before=None)


def _check_block(block: Block, set_before: set[int] | None) -> None:
    """`set_before` is None at the top, where the host sets the flags of a While."""
    known: set[int] = set()
    for node in block:
        if isinstance(node, Call):
            known |= {id(flag) for flag in node.sets}
        elif isinstance(node, Switch):
            if id(node.index) not in known:
                raise ProgramError("a Switch reads an index that no op before it has set")
            for body in node.bodies:
                _check_block(body, known)
        else:
            if set_before is not None and id(node.flag) not in known | set_before:
                raise ProgramError("a While reads a flag that no op before it has set")
            if not any(node.flag is flag for call in calls(node.body) for flag in call.sets):
                raise ProgramError("no op in the body of a While sets its flag: it cannot end")
            _check_block(node.body, known)
