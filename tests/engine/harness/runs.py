"""What the tests of the engine share: forced preemption, NaN in free memory, fresh forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from rsd_engine import Engine, RequestOutput, SamplingParams, Step
from rsd_engine.memory.page_pool import PagedKV
from rsd_kernels.state.enums import Role
from tests.loop.executors.around import around_launches
from tests.models.driver import Driver
from tests.page_checks import check_integrity, poison

PROMPTS = (
    "What is 12 + 30?",
    "x",
    "Tom has 3 apples.\n\nHe eats one.",
    "é日 and a longer prompt " * 4,
    "sum of 1 = 2",
    "(a)",
)


def generate(
    engine: Engine, prompts: Sequence[str], params: SamplingParams | Sequence[SamplingParams]
) -> list[RequestOutput]:
    return engine.generate(prompts, params, use_tqdm=False)


def decisions(result: RequestOutput, sample: int = 0) -> list[tuple[object, ...]]:
    """Every decision, without the rewards: what must not depend on the batch."""
    return [decision(step) for step in result.outputs[sample].steps]


def decision(step: Step) -> tuple[object, ...]:
    rejected = step.rejected.token_ids if step.rejected else None
    return (step.source, step.token_ids, rejected)


def poison_free(engine: Engine) -> None:
    """Writes NaN into free pages in which nothing is to be found, and into held ones past the
    tokens read, unless others own them too.
    """
    built = engine.parts
    state = built.core.state
    free, holds = state.free_pages[: int(state.num_free)], built.core.prefixes.holds
    poison(built.pool, free[[not holds(page) for page in free.tolist()]])
    for role, shape in built.models.kv_shapes.items():
        kv = built.pool.view(shape)
        for slot in range(state.num_slots):
            held = state.page_table[role, slot, : int(state.num_pages[role, slot])]
            owned = [page for page in held.tolist() if int(state.page_owners[page]) == 1]
            _poison_tail(kv, held, owned, int(state.kv_len[role, slot]))


def _poison_tail(kv: PagedKV, held: Tensor, owned: list[int], kv_len: int) -> None:
    size = kv.tokens_per_page
    for position in range(kv_len, len(held) * size):
        page, offset = int(held[position // size]), position % size
        if page in owned:
            for plane in (*kv.k, *kv.v):
                plane[page, offset] = torch.nan


@contextmanager
def short_launches(engine: Engine, ticks: int) -> Iterator[None]:
    """Launches return after this many ticks."""
    core = engine.parts.core
    before, core.ticks_per_launch = core.ticks_per_launch, ticks
    try:
        yield
    finally:
        core.ticks_per_launch = before


@contextmanager
def harsh(engine: Engine, *, ticks: int = 1, preempt_every: int = 5) -> Iterator[None]:
    """Short launches. Before each: integrity checks, NaN in free memory, sometimes a preemption."""
    core = engine.parts.core
    launches = 0

    def act() -> None:
        nonlocal launches
        launches += 1
        if preempt_every and launches % preempt_every == 0:
            core.preempt_youngest()
        check_integrity(core.state, core.loop.tokens_per_page)
        poison_free(engine)

    with short_launches(engine, ticks), around_launches(core, before=act):
        yield
    check_integrity(core.state, core.loop.tokens_per_page)


class Reached(Exception):
    """The condition that a test waits for holds."""


def run_until(engine: Engine, reached: Callable[[], bool]) -> None:
    """Runs launches, for a request of its own, until `reached` is true ahead of one."""

    def look() -> None:
        if reached():
            raise Reached

    params = SamplingParams(mode="draft", seed=0, max_tokens=400, ignore_eos=True)
    with around_launches(engine.parts.core, before=look), suppress(Reached):
        for _ in engine.stream("nobody reads this", params):
            pass
        raise AssertionError("it was never reached")


class Fresh:
    """Forwards of an engine's models over whole rows, on memory of their own."""

    def __init__(self, engine: Engine) -> None:
        self._models = engine.parts.models
        self._num_ids = self._models.num_ids

    def logits(self, role: Role, row: Sequence[int]) -> Tensor:  # [V]
        """What `role` says comes after the row."""
        return self._run(role, row)[0, : self._num_ids]

    def reward(self, row: Sequence[int]) -> float:
        return float(self._run(Role.PRM, row)[0])

    def _run(self, role: Role, row: Sequence[int]) -> Tensor:
        driver = Driver(self._models.models[role], tokens_per_page=16, num_slots=1, max_tokens=1088)
        out = torch.empty(0)
        for start in range(0, len(row), 256):
            out = driver.run((0, list(row[start : start + 256])))
        return out


def prm_rows(engine: Engine, result: RequestOutput, sample: int = 0) -> list[list[int]]:
    """The PRM's context at every scored step, tokenised from the steps' texts."""
    prm = engine.parts.models.prm
    assert prm is not None
    encode = prm.format.encoder.encode
    row = prm.format.prompt_ids(result.prompt or "")
    rows = []

    def extended(text: str) -> list[int]:
        ids = encode(text.removesuffix("\n\n"), add_special_tokens=False).ids
        return [*row, *ids, *prm.format.separator_ids]

    for step in result.outputs[sample].steps:
        if step.rejected:
            rows.append(extended(step.rejected.text))
        row = extended(step.text)
        if step.reward is not None:
            rows.append(row)
    return rows


def scores(result: RequestOutput, sample: int = 0) -> list[float]:
    """The rewards that belong to `prm_rows`."""
    found = []
    for step in result.outputs[sample].steps:
        if step.rejected:
            found.append(step.rejected.reward)
        if step.reward is not None:
            found.append(step.reward)
    return found


def all_pages_free(engine: Engine) -> bool:
    state = engine.parts.core.state
    held = int(state.num_pages.sum())
    return held == 0 and int(state.num_free) == state.free_pages.shape[0]
