"""Runs of one engine by several executors: what the host did and how long the device stood idle."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bench.step_scenes import Played, Scene, play, scene_request
from bench.timing import Mismatch
from rsd_engine import Engine
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import StepDecided
from rsd_engine.loop.executors.base import Executor
from rsd_kernels.state.enums import RecordKind, Role

Result = TypeVar("Result")
_WAITING = 3  # requests a slot in `count_returns`
_LEAST_REQUESTS = 6


@contextmanager
def using(core: EngineCore, executor: Executor) -> Iterator[None]:
    """The core runs this executor, which was built of the same loop; between launches only."""
    before = core.executor, core.ticks_per_launch
    core.executor, core.ticks_per_launch = executor, executor.ticks_per_launch
    try:
        yield
    finally:
        core.executor, core.ticks_per_launch = before


class Turns:
    """Whether there is time for one more run.

    Args:
        seconds: from now on, after which no run shall be going on.
    """

    def __init__(self, seconds: float) -> None:
        self.skipped: Counter[str] = Counter()
        self._end = time.monotonic() + seconds
        self._last: dict[str, float] = {}  # seconds of a run, by its name

    def fits(self, name: str) -> bool:
        """A run takes as long as the last of its name; the first is begun whenever it can be."""
        return time.monotonic() + self._last.get(name, 0.0) < self._end

    def run(self, name: str, fn: Callable[[], Result]) -> Result | None:
        """What `fn` gives; None, uncalled, if there is no time."""
        if not self.fits(name):
            self.skipped[name] += 1
            return None
        start = time.monotonic()
        result = fn()
        self._last[name] = time.monotonic() - start
        return result


@dataclass(frozen=True)
class Run:
    """One scene by one executor. A step is a kept one: its rejected draft belongs to it.

    Attributes:
        seconds: wall time in which every slot gets a step of the scene's tokens.
        launches: of a step of one slot, from the host's counts.
        ticks: likewise.
        idle: share of the device's time between the ticks of a launch.
        rejected: share of the draft's steps.
    """

    seconds: float
    launches: float
    ticks: float
    idle: float
    rejected: float


def run_scene(engine: Engine, executor: Executor, scene: Scene) -> tuple[Run, Played]:
    """Runs a scene, its prompts pretended to be read.

    Raises:
        MemoryError: the pool cannot hold it.
        Mismatch: a step is not as long as asked for.
    """
    core = engine.parts.core
    with using(core, executor):
        before = _counts(core)
        played = play(engine, scene)
        launches, ticks, busy, idle = (
            now - then for now, then in zip(_counts(core), before, strict=True)
        )
    check_steps(played, scene)
    steps = scene.num_steps
    run = Run(
        seconds=played.seconds / scene.steps,
        launches=launches / steps,
        ticks=ticks / steps,
        idle=idle / max(1, busy + idle),
        rejected=played.rejected / (played.kept + played.rejected),
    )
    return run, played


def check_steps(played: Played, scene: Scene) -> None:
    """Raises Mismatch unless every slot wrote its steps, of the lengths asked for."""
    for slot, steps in played.decisions.items():
        kept = [len(tokens) for kind, _, tokens in steps if kind == RecordKind.KEPT]
        rejected = [len(tokens) for kind, _, tokens in steps if kind == RecordKind.REJECTED]
        wanted = scene.step_lengths(slot)
        if kept != wanted or not set(rejected) <= set(wanted):
            raise Mismatch(
                f"slot {slot} kept steps of {kept} tokens and rejected steps of {rejected}, "
                f"expected {wanted}"
            )


def kept_drafts(played: Played) -> list[bool]:
    """For every step of the first slot, whether it is the draft's."""
    steps = played.decisions[0]
    return [source == Role.DRAFT for kind, source, _ in steps if kind == RecordKind.KEPT]


@dataclass(frozen=True)
class Returns:
    """How often the loop returns while requests wait for slots, and what that costs."""

    executor: str
    slots: int
    steps: int
    launches: int
    seconds: float  # of the host between two launches, mean
    share: float  # of the wall time

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"launches_a_step": self.launches / self.steps}

    def row(self) -> list[str]:
        return [
            self.executor, str(self.slots), str(self.launches),
            f"{self.launches / self.steps:.3f}", f"{1e6 * self.seconds:.0f}", f"{self.share:.1%}",
        ]  # fmt: skip


RETURN_HEADERS = ("executor", "slots", "launches", "a step", "us a return", "of the time")


def count_returns(engine: Engine, executor: Executor, scene: Scene) -> Returns:
    """Three requests a slot, of one to three times the scene's steps; prompts are read.

    Raises:
        Mismatch: they were done in one launch, so that nothing returned.
    """
    core = engine.parts.core
    requests = [
        scene_request(engine, replace(scene, steps=scene.steps * (1 + i % _WAITING)), i)
        for i in range(max(_LEAST_REQUESTS, _WAITING * scene.slots))
    ]
    steps = 0
    with using(core, executor), _slots(core, scene.slots):
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
def _slots(core: EngineCore, count: int) -> Iterator[None]:
    """The core admits into its first `count` slots only; between launches."""
    before = core._slots
    core._slots = before[:count]
    try:
        yield
    finally:
        core._slots = before


def _counts(core: EngineCore) -> Sequence[int]:
    """Launches, ticks, nanoseconds of ticks and between them, so far."""
    state, stats = core.state, core.stats
    return (
        stats.launches, stats.ticks, int(state.tick_nanoseconds), int(state.idle_nanoseconds),
    )  # fmt: skip
