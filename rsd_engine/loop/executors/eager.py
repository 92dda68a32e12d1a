"""The executor that walks the program in Python: what all others must agree with."""

from __future__ import annotations

from rsd_engine.loop.executors.base import annotate
from rsd_engine.loop.program import Block, Call, Switch, check_program
from rsd_kernels.state.columns import number


class EagerExecutor:
    """Runs a whole launch in `start`."""

    name = "eager"
    blocks = True

    def __init__(self, program: Block, *, ticks_per_launch: int = 16) -> None:
        check_program(program)
        self.ticks_per_launch = ticks_per_launch
        self._program = program

    def start(self) -> None:
        run(self._program)

    def poll(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


def run(block: Block) -> None:
    """Runs every node in order, reading each flag when it is reached."""
    for node in block:
        if isinstance(node, Call):
            with annotate(node.name):
                node.run()
        elif isinstance(node, Switch):
            index = number(node.index)  # host read: the device loop does without
            if index < len(node.bodies):
                run(node.bodies[index])
        else:
            while number(node.flag):  # host read: as above
                run(node.body)
