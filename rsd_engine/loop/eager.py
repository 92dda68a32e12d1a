"""The executor that lets Python walk the program: the oracle for the others."""

from __future__ import annotations

from rsd_engine.loop.program import Block, Call, Switch, While


def run(block: Block) -> None:
    """Runs every node in order, reading each flag when it is reached."""
    for node in block:
        if isinstance(node, Call):
            node.fn()
        elif isinstance(node, Switch):
            index = int(node.index)
            if index < len(node.bodies):
                run(node.bodies[index])
        elif isinstance(node, While):
            while int(node.flag):
                run(node.body)
