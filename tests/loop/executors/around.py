"""Act before and after every launch of an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.loop.executors.base import Executor


def nothing() -> None:
    """The default: do nothing."""


class Around:
    """Launches as `executor` does, with `before` ahead of each launch and `after` behind its start.

    What they raise ends the launch, as an error in the executor would.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        before: Callable[[], object] = nothing,
        after: Callable[[], object] = nothing,
    ) -> None:
        self.name = executor.name
        self.ticks_per_launch = executor.ticks_per_launch
        self.blocks = executor.blocks
        self._executor, self._before, self._after = executor, before, after

    def start(self) -> None:
        self._before()
        self._executor.start()
        self._after()

    def poll(self) -> bool:
        return self._executor.poll()

    def close(self) -> None:
        self._executor.close()


@contextmanager
def around_launches(
    core: EngineCore,
    *,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
) -> Iterator[None]:
    """Surrounds the core's launches inside the block, then puts its executor back."""
    executor = core.executor
    core.executor = Around(executor, before=before, after=after)
    try:
        yield
    finally:
        core.executor = executor
