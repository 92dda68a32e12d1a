"""How often the loop returns to the host while requests wait for slots, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench.lib.scenes import Scene, scene_request
from bench.lib.timing import Mismatch
from bench.loop.runs import using
from rsd_engine import Engine
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import StepDecided
from rsd_engine.loop.executors.base import Executor
from rsd_kernels.state.enums import RecordKind

_REQUESTS_PER_SLOT = 3
_LEAST_REQUESTS = 6


@dataclass(frozen=True)
class Returns:
    """Launches of one executor at one number of slots.

    Attributes:
        steps: kept steps.
        seconds: mean time of the host between two launches.
        share: time of the host between launches, as a share of the wall time.
    """

    executor: str
    slots: int
    steps: int
    launches: int
    seconds: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"launches_a_step": self.launches / self.steps}

    def row(self) -> list[str]:
        return [
            self.executor, str(self.slots), str(self.launches),
            f"{self.launches / self.steps:.3f}", f"{1e6 * self.seconds:.0f}", f"{self.share:.1%}",
        ]  # fmt: skip


RETURN_HEADERS = ("executor", "slots", "launches", "a step", "us a return", "of the time")


def count_returns(engine: Engine, executor: Executor, scene: Scene) -> Returns:
    """Runs three requests a slot, with one to three times the steps of the scene and real prompts.

    Raises:
        Mismatch: one launch ran them all, so the loop never returned.
    """
    core = engine.parts.core
    requests = [
        scene_request(engine, replace(scene, steps=scene.steps * (1 + i % _REQUESTS_PER_SLOT)), i)
        for i in range(max(_LEAST_REQUESTS, _REQUESTS_PER_SLOT * scene.slots))
    ]
    steps = 0
    with using(core, executor), _at_most(core, scene.slots):
        before = replace(core.stats)
        start = time.perf_counter()
        for key, request in enumerate(requests):
            core.add(key, request)
        while core.has_work:
            steps += sum(
                isinstance(event, StepDecided) and event.kind == RecordKind.KEPT
                for event in core.next_events()
            )
        seconds = time.perf_counter() - start
    launches = core.stats.launches - before.launches
    if launches < 2:
        raise Mismatch(f"{len(requests)} requests for {scene.slots} slots took one launch")
    between = core.stats.gap_seconds - before.gap_seconds
    return Returns(
        executor.name, scene.slots, steps, launches, between / (launches - 1), between / seconds
    )


@contextmanager
def _at_most(core: EngineCore, count: int) -> Iterator[None]:
    """The core runs at most `count` requests at once; between launches only."""
    before = core.max_running
    core.max_running = count
    try:
        yield
    finally:
        core.max_running = before
