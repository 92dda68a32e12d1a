"""Rounds of steps at a given context, run and timed at the engine's core.

A prompt of 16k tokens on 64 slots takes minutes to read and is not what is measured: its keys and
values are random numbers, put there before the clock starts. From then on everything is real: the
PRM scores every step, and only what the policy makes of the score is chosen (`Constant(p)`), so
that a given share is rejected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import isnan

import torch

from rsd_engine import Constant, Engine, SamplingParams
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.requests import slot_request
from rsd_engine.loop.executors.base import Executor
from rsd_kernels.philox.twin import uniform
from rsd_kernels.schedule.twin import take_pages
from rsd_kernels.state.enums import NUM_ROLES, Mode, Purpose, RecordKind, Role
from rsd_kernels.state.slots import pages_for

_SPARE = 64  # tokens a row may grow beyond its steps
_SEEDS = 100_000
_GOLDEN = (5**0.5 - 1) / 2  # its multiples fill an interval evenly, however many there are


@dataclass(frozen=True)
class Scene:
    """What every slot does: `steps` steps of `step_tokens` tokens after `context` tokens.

    Attributes:
        mode: "rsd", or "draft" or "target" alone.
        acceptance: chance that a draft step is kept.
        seed: of the first slot; the others follow.
        uneven: a slot's steps are longer or shorter than another's, by up to a half; it writes as
            many tokens as the others, in fewer steps or more.
        logprobs: best logprobs that come with every token; None: no logprobs.
    """

    mode: str
    acceptance: float
    slots: int
    context: int
    step_tokens: int
    steps: int
    seed: int = 1000
    uneven: bool = False
    logprobs: int | None = None

    @property
    def tokens(self) -> int:
        """What a slot writes and keeps."""
        return self.steps * self.step_tokens

    @property
    def model_len(self) -> int:
        return self.context + self.tokens + _SPARE

    @property
    def num_steps(self) -> int:
        """Kept steps of all slots."""
        return sum(len(self.step_lengths(slot)) for slot in range(self.slots))

    def longest_step(self, slot: int) -> int:
        """Tokens of all steps of a slot but the last, which may be cut; of slot 0 `step_tokens`."""
        share = (0.5 + slot * _GOLDEN) % 1 - 0.5 if self.uneven else 0.0
        return max(1, round(self.step_tokens * (1 + share)))

    def step_lengths(self, slot: int) -> list[int]:
        """Tokens of a slot's steps, in order."""
        longest = self.longest_step(slot)
        return [min(longest, self.tokens - at) for at in range(0, self.tokens, longest)]


@dataclass(frozen=True)
class Played:
    """One run of a scene.

    Attributes:
        seconds: wall time from the first launch to the last decision.
        busy_seconds, busy_tokens: until the first slot was done, and what all kept by then.
        role_seconds: of a slot's passes by role, mean over the slots.
        passes: of a slot by role, mean over the slots.
        rows: tokens that each model read, over all slots.
        kept, rejected: draft steps, over all slots.
        steps: what was told of every slot, in order.
        decisions: (kind, source, tokens) of every slot, in order.
        rewards: of the same steps; None for those that are not scored.
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
    core = engine.parts.core
    requests = [scene_request(engine, scene, slot) for slot in range(scene.slots)]
    _check_pages(core, requests)
    prepare = _nothing if real_prompts else (lambda: _pretend_read(core, engine))
    inner = core.executor
    pretending = PretendRead(inner, prepare)
    core.executor = pretending
    try:
        for key, request in enumerate(requests):
            core.add(key, request)
        told: list[tuple[float, Event]] = []
        while core.has_work:
            events = core.next_events()
            now = time.perf_counter()
            told += [(now, event) for event in events]
    finally:
        core.executor = inner
    assert pretending.started is not None
    return _played(scene, [(when - pretending.started, event) for when, event in told])


def fill_pages(engine: Engine) -> None:
    """Small random numbers into every page: what lies there is read, and must be finite."""
    pool, dtype = engine.parts.pool, engine.parts.models.main.model.dtype
    for chunk in pool.buffer.view(dtype).split(2**28):
        chunk.normal_(0, 0.5)


def scene_request(engine: Engine, scene: Scene, slot: int) -> SlotRequest:
    """Different prompts of equally many tokens."""
    rules = engine.parts.rules
    ids = prompt_ids(scene, slot)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=scene.tokens,
        max_steps=len(scene.step_lengths(slot)),
        max_step_tokens=scene.longest_step(slot),
        logprobs=scene.logprobs,
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


def scene_of(scene: Scene, rejected: float) -> Scene:
    """The scene with a seed by which the slots together reject exactly this share of steps.

    Raises:
        ValueError: no seed was found that does.
    """
    wanted = round(rejected * scene.num_steps)
    for seed in range(_SEEDS):
        if sum(draw >= 1 - rejected for draw in _accept_draws(scene, seed)) == wanted:
            return replace(scene, acceptance=1 - rejected, seed=seed)
    raise ValueError(
        f"rejected must be a share that {scene.num_steps} steps can have, got {rejected}"
    )


def _accept_draws(scene: Scene, seed: int) -> Iterator[float]:
    """Of every step of every slot; the draft's and the target's are equally long."""
    for slot in range(scene.slots):
        for step, end in enumerate(accumulate(scene.step_lengths(slot))):
            yield uniform(
                seed + slot, 0, num_steps=step, position=scene.context + end,
                role=Role.PRM, purpose=Purpose.ACCEPT,
            )  # fmt: skip


def _check_pages(core: EngineCore, requests: Sequence[SlotRequest]) -> None:
    need = sum(core._pages_at(request, request.length_limit) for request in requests)
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
        for role in engine.parts.models.models:
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


def _played(scene: Scene, events: Sequence[tuple[float, Event]]) -> Played:
    """`events` come with the seconds after which they were told."""
    busy = next(when for when, event in events if isinstance(event, RequestDone))
    early = [e for when, e in events if when <= busy and isinstance(e, StepDecided)]
    done = [event for _, event in events if isinstance(event, RequestDone)]
    steps = [event for _, event in events if isinstance(event, StepDecided)]
    told: dict[int, list[StepDecided]] = {key: [] for key in range(scene.slots)}
    for step in steps:
        told[step.key].append(step)
    by_role: dict[str, dict[Role, float]] = {"seconds": {}, "passes": {}}
    for name, found in by_role.items():
        for role in Role:
            values = [getattr(d.counters[role], name) for d in done if role in d.counters]
            found[role] = sum(values) / scene.slots
    counters = [d.counters for d in done]
    assert len(Role) == NUM_ROLES
    return Played(
        seconds=events[-1][0],
        busy_seconds=busy,
        busy_tokens=sum(len(s.token_ids) for s in early if s.kind == RecordKind.KEPT),
        role_seconds=by_role["seconds"],
        passes=by_role["passes"],
        rows={r: sum(c[r].tokens_read for c in counters if r in c) for r in Role},
        kept=sum(s.kind == RecordKind.KEPT and s.source == Role.DRAFT for s in steps),
        rejected=sum(s.kind == RecordKind.REJECTED for s in steps),
        steps=told,
        decisions={
            key: [(int(s.kind), int(s.source), s.token_ids) for s in of_slot]
            for key, of_slot in told.items()
        },
        rewards={
            key: [None if isnan(s.reward) else s.reward for s in of_slot]
            for key, of_slot in told.items()
        },
    )
