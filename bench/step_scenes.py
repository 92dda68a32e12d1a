"""Rounds of steps at a given context, run and timed at the engine's core.

A prompt of 16k tokens on 64 slots takes minutes to read and is not what is measured: its keys and
values are random numbers, put there before the clock starts. From then on everything is real: the
PRM scores every step, and only what the policy makes of the score is chosen (`Constant(p)`), so
that a given share is rejected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan

import torch

from rsd_engine import Constant, Engine, SamplingParams
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import RequestDone, StepDecided
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.requests import slot_request
from rsd_engine.loop.executor import Executor
from rsd_engine.memory.slots import SlotRequest
from rsd_kernels.reference.pages import pages_for, take_pages
from rsd_kernels.reference.step_log import RecordKind
from rsd_kernels.slot_state import NUM_ROLES, Mode, Role

_SPARE = 64  # tokens a row may grow beyond its steps


@dataclass(frozen=True)
class Scene:
    """What every slot does: `steps` steps of `step_tokens` tokens after `context` tokens.

    Attributes:
        mode: "rsd", or "draft" or "target" alone.
        acceptance: chance that a draft step is kept.
        seed: of the first slot; the others follow.
    """

    mode: str
    acceptance: float
    slots: int
    context: int
    step_tokens: int
    steps: int
    seed: int = 1000

    @property
    def model_len(self) -> int:
        return self.context + self.steps * self.step_tokens + _SPARE


@dataclass(frozen=True)
class Played:
    """One run of a scene.

    Attributes:
        seconds: wall time from the first launch to the last decision.
        role_seconds: of a slot's passes by role, mean over the slots.
        passes: of a slot by role, mean over the slots.
        kept, rejected: draft steps, over all slots.
        decisions: (kind, source, tokens) of every slot, in order.
        rewards: of the same steps; None for those that are not scored.
    """

    seconds: float
    role_seconds: dict[Role, float]
    passes: dict[Role, float]
    kept: int
    rejected: int
    decisions: dict[int, list[tuple[int, int, tuple[int, ...]]]]
    rewards: dict[int, list[float | None]]


class PretendRead:
    """An executor whose first launch finds the prompts read, and the clock started.

    Args:
        inner: runs the program.
        prepare: called before the first launch.
    """

    def __init__(self, inner: Executor, prepare: Callable[[], None]) -> None:
        self.name = inner.name
        self.ticks_per_launch = inner.ticks_per_launch
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
    """Runs a scene; with `real_prompts` the prompts are read as well.

    Raises:
        MemoryError: the pool cannot hold the scene.
    """
    core = engine._built.core
    requests = [scene_request(engine, scene, slot) for slot in range(scene.slots)]
    _check_pages(core, requests)
    prepare = _nothing if real_prompts else (lambda: _pretend_read(core, engine))
    inner = core.executor
    pretending = PretendRead(inner, prepare)
    core.executor = pretending
    try:
        for key, request in enumerate(requests):
            core.add(key, request)
        events = []
        while core.has_work:
            events += core.step()
        ended = time.perf_counter()
    finally:
        core.executor = inner
    assert pretending.started is not None
    return _played(scene, ended - pretending.started, events)


def fill_pages(engine: Engine) -> None:
    """Small random numbers into every page: what lies there is read, and must be finite."""
    pool, dtype = engine._built.pool, engine._built.models.main.model.dtype
    for chunk in pool.buffer.view(dtype).split(2**28):
        chunk.normal_(0, 0.5)


def scene_request(engine: Engine, scene: Scene, slot: int) -> SlotRequest:
    """Different prompts of equally many tokens."""
    rules = engine._built.rules
    ids = prompt_ids(scene, slot)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=scene.steps * scene.step_tokens,
        max_steps=scene.steps,
        max_step_tokens=scene.step_tokens,
        ignore_eos=True,
        mode=scene.mode,  # type: ignore[arg-type]
        policy=Constant(scene.acceptance),
    )
    prompt = ResolvedPrompt(text=None, token_ids=tuple(ids), question="?")
    request = slot_request(prompt, params, rules, seed=scene.seed + slot, sample=0)
    prm_prompt = tuple(ids) if request.mode == Mode.RSD else ()
    return replace(request, prm_prompt=prm_prompt)


def prompt_ids(scene: Scene, slot: int) -> list[int]:
    """What a slot begins with."""
    return [2 + (slot * 7 + i) % 200 for i in range(scene.context)]


def _check_pages(core: EngineCore, requests: Sequence[SlotRequest]) -> None:
    need = sum(core._pages_at(request, request.limit) for request in requests)
    have = int(core.state.free_pages.shape[0])
    if need > have:
        raise MemoryError(f"{len(requests)} slots need {need} KV pages, the pool has {have}")


def _pretend_read(core: EngineCore, engine: Engine) -> None:
    """Gives every slot its pages and moves the cursors to the last prompt token."""
    state, tokens_per_page = core.state, core.loop.tokens_per_page
    lengths = {Role.PRM: state.prm_length.tolist()}
    lengths |= dict.fromkeys((Role.DRAFT, Role.TARGET), state.length.tolist())
    active = state.active.tolist()
    modes = state.mode.tolist()
    for slot in (s for s in range(state.num_slots) if active[s]):
        for role in engine._built.models.models:
            alone = {Mode.DRAFT: Role.DRAFT, Mode.TARGET: Role.TARGET}.get(Mode(modes[slot]))
            if alone is not None and role != alone:
                continue
            length = lengths[role][slot]
            take_pages(state, role, slot, pages_for(length, tokens_per_page[role]))
            state.kv_len[role, slot] = length if role == Role.PRM else length - 1
    if state.length.is_cuda:
        torch.cuda.synchronize(state.length.device)


def _nothing() -> None:
    """Prompts are read by the models."""


def _played(scene: Scene, seconds: float, events: Sequence[StepDecided | RequestDone]) -> Played:
    done = [event for event in events if isinstance(event, RequestDone)]
    steps = [event for event in events if isinstance(event, StepDecided)]
    decisions: dict[int, list[tuple[int, int, tuple[int, ...]]]] = {
        key: [] for key in range(scene.slots)
    }
    for step in steps:
        decisions[step.key].append((int(step.kind), int(step.source), step.token_ids))
    rewards: dict[int, list[float | None]] = {key: [] for key in range(scene.slots)}
    for step in steps:
        rewards[step.key].append(None if isnan(step.reward) else step.reward)
    by_role: dict[str, dict[Role, float]] = {"seconds": {}, "passes": {}}
    for name, found in by_role.items():
        for role in Role:
            values = [getattr(d.counters[role], name) for d in done if role in d.counters]
            found[role] = sum(values) / scene.slots
    assert len(Role) == NUM_ROLES
    return Played(
        seconds=seconds,
        role_seconds=by_role["seconds"],
        passes=by_role["passes"],
        kept=sum(s.kind == RecordKind.KEPT and s.source == Role.DRAFT for s in steps),
        rejected=sum(s.kind == RecordKind.REJECTED for s in steps),
        decisions=decisions,
        rewards=rewards,
    )
