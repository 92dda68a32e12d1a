"""Graphs of ops where there is no CUDA: a graph is the list of its ops, called in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rsd_engine.loop.program import Call


class DirectRecorder:
    """See `Recorder`. A flag that no replay has brought over cannot be read."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, ...]] = []
        self._mirrors: dict[int, int] = {}  # by the id of the flag

    def record(self, ops: Sequence[Call]) -> Callable[[], None]:
        self.recorded.append(tuple(op.name for op in ops))

        def replay() -> None:
            for op in ops:
                op.fn()
                for flag in op.sets:
                    self._mirrors[id(flag)] = int(flag)  # host read: this executor's way

        return replay

    def begin(self) -> None:
        """Host and ops run in one thread."""

    def read(self, flag: Tensor) -> int:
        return self._mirrors[id(flag)]

    def close(self) -> None:
        self.recorded.clear()
