"""Runs of scenes on one engine by several executors: launches, ticks and idle time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from bench.lib.play import Played, play
from bench.lib.scenes import Scene
from bench.lib.timing import Mismatch
from rsd_engine import Engine
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.loop.executors.base import Executor
from rsd_kernels.state.enums import RecordKind, Role

Result = TypeVar("Result")


@contextmanager
def using(core: EngineCore, executor: Executor) -> Iterator[None]:
    """The core runs this executor, which must be of the same loop; between launches only."""
    before = core.executor, core.ticks_per_launch
    core.executor, core.ticks_per_launch = executor, executor.ticks_per_launch
    try:
        yield
    finally:
        core.executor, core.ticks_per_launch = before


class TimeBudget:
    """Says whether there is time for one more run.

    Args:
        seconds: after which no run should still be going on, from now.

    Attributes:
        skipped: how many runs were left out, by name.
    """

    def __init__(self, seconds: float) -> None:
        self.skipped: Counter[str] = Counter()
        self._end = time.monotonic() + seconds
        self._last: dict[str, float] = {}  # seconds of a run, by its name

    def fits(self, name: str) -> bool:
        """Whether a run that takes as long as the last of this name would end in time."""
        return time.monotonic() + self._last.get(name, 0.0) < self._end

    def run(self, name: str, fn: Callable[[], Result]) -> Result | None:
        """The result of `fn`; None, without calling it, if there is no time."""
        if not self.fits(name):
            self.skipped[name] += 1
            return None
        start = time.monotonic()
        result = fn()
        self._last[name] = time.monotonic() - start
        return result


@dataclass(frozen=True)
class Run:
    """One scene by one executor. Steps are kept steps; a rejected draft is part of its rewrite.

    Attributes:
        seconds: wall time in which every slot gets a step.
        launches: per step of one slot, counted by the host.
        ticks: likewise.
        idle: share of time in which the device was idle between ticks of a launch.
        rejected: share of draft steps that were rejected.
    """

    seconds: float
    launches: float
    ticks: float
    idle: float
    rejected: float


def run_scene(engine: Engine, executor: Executor, scene: Scene) -> tuple[Run, Played]:
    """Runs a scene without reading its prompts.

    Raises:
        MemoryError: the pool cannot hold it.
        Mismatch: a step is not as long as the scene asks for.
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
    """Every slot must have written its steps, in the lengths that the scene asks for.

    Raises:
        Mismatch: naming the first slot that has not.
    """
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
    """For every kept step of the first slot, whether the draft wrote it."""
    steps = played.decisions[0]
    return [source == Role.DRAFT for kind, source, _ in steps if kind == RecordKind.KEPT]


def _counts(core: EngineCore) -> tuple[int, int, int, int]:
    """So far: launches, ticks, nanoseconds in ticks and nanoseconds between them."""
    state, stats = core.state, core.stats
    return (
        stats.launches, stats.ticks, int(state.tick_nanoseconds), int(state.idle_nanoseconds),
    )  # fmt: skip
