"""The executor in which the host drives: it reads the flags every tick, and replays graphs of ops.

It works on any GPU, can be profiled, and shows what the device loop saves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from rsd_engine.loop.executors.base import annotate
from rsd_engine.loop.program import Block, Call, ProgramError, Switch, While, check_program


class Recorder(Protocol):
    """Makes graphs of ops, which also bring the flags that an op sets to the host."""

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        """A function that replays these ops, in order.

        Raises:
            GraphError: an op cannot be captured; the message names it.
        """

    def begin(self) -> None:
        """Makes the next replay wait for what the host has written to the state."""

    def read(self, flag: Tensor) -> int:
        """The value of a flag after the last replay, which it waits for."""

    def close(self) -> None:
        """Frees the graphs."""


class HostGraphsExecutor:
    """Replays one graph for each run of ops without a branch; `poll` does one tick.

    Raises:
        ProgramError: the program is not one While at the top, or reads a flag before it is set.
        GraphError: an op cannot be captured.
    """

    blocks = False

    def __init__(
        self,
        program: Block,
        recorder: Recorder,
        *,
        ticks_per_launch: int,
        name: str = "host-graphs",
    ) -> None:
        check_program(program)
        self.name = name
        self.recorder = recorder
        if len(program) != 1 or not isinstance(program[0], While):
            raise ProgramError("host graphs need a program that is one While")
        self.ticks_per_launch = ticks_per_launch
        self._flag = program[0].flag
        self._turn = self._fused(program[0].body)

    def start(self) -> None:
        """The host has set the flag; the first poll does the first tick."""
        self.recorder.begin()

    def poll(self) -> bool:
        self._run(self._turn)
        return self.recorder.read(self._flag) == 0

    def close(self) -> None:
        self.recorder.close()

    def _fused(self, block: Block) -> Block:
        """The block, each run of ops in it replaced by one that replays their graph."""
        fused: list[Call | Switch] = []
        run: list[Call] = []
        for node in block:
            if isinstance(node, Call):
                run.append(node)
                continue
            if not isinstance(node, Switch):
                raise ProgramError("host graphs run one While, not one inside another")
            fused += self._replay(run)
            fused.append(Switch(node.index, tuple(self._fused(body) for body in node.bodies)))
            run = []
        return (*fused, *self._replay(run))

    def _replay(self, run: list[Call]) -> list[Call]:
        if not run:
            return []
        name = run[0].name.split(".")[0]
        flags = tuple(flag for op in run for flag in op.sets)
        return [Call(name, self.recorder.record(tuple(run)), flags)]

    def _run(self, block: Block) -> None:
        for node in block:
            if isinstance(node, Call):
                with annotate(node.name):
                    node.fn()
            elif isinstance(node, Switch):
                index = self.recorder.read(node.index)
                if index < len(node.bodies):
                    self._run(node.bodies[index])


class DirectRecorder:
    """A `Recorder` without graphs: it calls the ops. Only flags that were replayed can be read."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, ...]] = []
        self._mirrors: dict[int, int] = {}  # by the id of the flag

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        self.recorded.append(tuple(op.name for op in ops))

        def replay() -> None:
            for op in ops:
                op.run()
                for flag in op.sets:
                    self._mirrors[id(flag)] = int(flag)  # host read: as this executor does

        return replay

    def begin(self) -> None:
        """Nothing to wait for: host and ops share a thread."""

    def read(self, flag: Tensor) -> int:
        return self._mirrors[id(flag)]

    def close(self) -> None:
        self.recorded.clear()
