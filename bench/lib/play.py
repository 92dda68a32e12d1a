"""Runs a scene through the engine's core and times it.

Reading a prompt of 16k tokens on 64 slots takes minutes and is not what is measured. So the keys
and values of prompts are random numbers, which lie in the pool before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan

import torch

from bench.lib.scenes import Scene, scene_request
from rsd_engine import Engine
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_engine.loop.executors.base import Executor
from rsd_kernels.state.enums import Mode, RecordKind, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.slots import pages_for


@dataclass(frozen=True)
class Played:
    """One run of a scene.

    Attributes:
        seconds: wall time from the first launch to the last decision.
        busy_seconds: wall time from the first launch until the first slot was done.
        busy_tokens: tokens that all slots had kept by then.
        role_seconds: seconds of all passes, by role.
        passes: passes of a slot, by role, mean over the slots.
        rows: tokens that each model read, over all slots.
        kept, rejected: draft steps, over all slots.
        steps: every decision, by slot, in order.
        decisions: (kind, source, tokens) of the same.
        rewards: rewards of the same; None for a step that is not scored.
    """

    seconds: float
    busy_seconds: float
    busy_tokens: int
    role_seconds: dict[Role, float]
    passes: dict[Role, float]
    rows: dict[Role, int]
    kept: int
    rejected: int
    steps: dict[int, list[StepDecided]]
    decisions: dict[int, list[tuple[int, int, tuple[int, ...]]]]
    rewards: dict[int, list[float | None]]


class PreparedExecutor:
    """An executor that prepares the state before its first launch, then starts the clock.

    Args:
        inner: runs the program.
        prepare: called before the first launch.
    """

    def __init__(self, inner: Executor, prepare: Callable[[], None]) -> None:
        self.name = inner.name
        self.ticks_per_launch = inner.ticks_per_launch
        self.blocks = inner.blocks
        self.started: float | None = None
        self._inner = inner
        self._prepare = prepare

    def start(self) -> None:
        if self.started is None:
            self._prepare()
            self.started = time.perf_counter()
        self._inner.start()

    def poll(self) -> bool:
        return self._inner.poll()

    def close(self) -> None:
        self._inner.close()


def play(engine: Engine, scene: Scene, *, real_prompts: bool = False) -> Played:
    """Runs a scene; its prompts are read only with `real_prompts`.

    Raises:
        MemoryError: the pool cannot hold the scene.
    """
    core = engine.parts.core
    requests = [scene_request(engine, scene, slot) for slot in range(scene.slots)]
    _check_pages(core, requests)

    def prepare() -> None:
        if not real_prompts:
            _fake_prompts(core, engine)

    inner = core.executor
    prepared = PreparedExecutor(inner, prepare)
    core.executor = prepared
    try:
        for key, request in enumerate(requests):
            core.add(key, request)
        timed: list[tuple[float, Event]] = []
        while core.has_work:
            events = core.next_events()
            now = time.perf_counter()
            timed += [(now, event) for event in events]
    finally:
        core.executor = inner
    assert prepared.started is not None
    return _played(scene, [(when - prepared.started, event) for when, event in timed])


def fill_pages(engine: Engine) -> None:
    """Writes small random numbers into every page: they stand for prompts, and must be finite.

    They are the same in every process, and so are the tokens that are drawn after them.
    """
    pool, dtype = engine.parts.pool, engine.parts.models.main.model.dtype
    generator = torch.Generator(pool.buffer.device).manual_seed(0)
    for chunk in pool.buffer.view(dtype).split(2**28):
        chunk.normal_(0, 0.5, generator=generator)


def _check_pages(core: EngineCore, requests: Sequence[SlotRequest]) -> None:
    need = sum(core.pages_for_request(request) for request in requests)
    have = int(core.state.free_pages.shape[0])
    if need > have:
        raise MemoryError(f"{len(requests)} slots need {need} KV pages, the pool has {have}")


def _fake_prompts(core: EngineCore, engine: Engine) -> None:
    """Gives every slot its pages and moves its cursors to the last token of the prompt."""
    state, tokens_per_page = core.state, core.loop.tokens_per_page
    lengths = {Role.PRM: state.prm_length.tolist()}
    lengths |= dict.fromkeys((Role.DRAFT, Role.TARGET), state.length.tolist())
    active = state.active.tolist()
    modes = state.mode.tolist()
    for slot in (s for s in range(state.num_slots) if active[s]):
        for role in engine.parts.models.models:
            alone = {Mode.DRAFT: Role.DRAFT, Mode.TARGET: Role.TARGET}.get(Mode(modes[slot]))
            if alone is not None and role != alone:
                continue
            length = lengths[role][slot]
            take_pages(state, role, slot, pages_for(length, tokens_per_page[role]))
            state.kv_len[role, slot] = length if role == Role.PRM else length - 1
    if state.length.is_cuda:
        torch.cuda.synchronize(state.length.device)


def _played(scene: Scene, events: Sequence[tuple[float, Event]]) -> Played:
    """The figures of a run, from its events and the seconds at which they came."""
    steps: dict[int, list[StepDecided]] = {key: [] for key in range(scene.slots)}
    for _, event in events:
        if isinstance(event, StepDecided):
            steps[event.key].append(event)
    every_step = [step for of_slot in steps.values() for step in of_slot]
    counters = [event.counters for _, event in events if isinstance(event, RequestDone)]
    busy = next(when for when, event in events if isinstance(event, RequestDone))
    of_role = {role: [c[role] for c in counters if role in c] for role in Role}
    return Played(
        seconds=events[-1][0],
        busy_seconds=busy,
        busy_tokens=sum(
            len(event.token_ids)
            for when, event in events
            if when <= busy and isinstance(event, StepDecided) and event.kind == RecordKind.KEPT
        ),
        role_seconds={r: sum(c.seconds for c in of_role[r]) for r in Role},
        passes={r: sum(c.passes for c in of_role[r]) / scene.slots for r in Role},
        rows={r: sum(c.tokens_read for c in of_role[r]) for r in Role},
        kept=sum(s.kind == RecordKind.KEPT and s.source == Role.DRAFT for s in every_step),
        rejected=sum(s.kind == RecordKind.REJECTED for s in every_step),
        steps=steps,
        decisions={
            key: [(int(s.kind), int(s.source), s.token_ids) for s in of_slot]
            for key, of_slot in steps.items()
        },
        rewards={
            key: [None if isnan(s.reward) else s.reward for s in of_slot]
            for key, of_slot in steps.items()
        },
    )
