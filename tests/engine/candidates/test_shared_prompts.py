"""Samples of one prompt read it once, hold its pages once, and write what each writes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from rsd_engine import CompletionOutput, Engine, Metrics, RequestOutput, SamplingParams, Threshold
from rsd_engine.core.slots import SlotRequest
from rsd_engine.sampling_params import ModeName
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import all_pages_free, decisions, generate, scores, short_launches
from tests.loop.executors.around import around_launches
from tests.tiny_models import TinyModels

COUNT = 16
PROMPT = "Tom has 3 apples and é日 (a) pears.\n\n" * 5
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=24, policy=Threshold(0.5))
MODES: tuple[ModeName, ...] = ("rsd", "target", "draft")


def engine_of(tiny: TinyModels, slots: int, *, caching: bool = True) -> Engine:
    return Engine(
        **tiny.sources(), max_num_seqs=slots, step_ends="tokens", device="cpu",
        enable_prefix_caching=caching,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wide(tiny: TinyModels) -> Iterator[Engine]:
    """With a slot for every sample."""
    with engine_of(tiny, COUNT, caching=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(wide: Engine) -> dict[ModeName, list[RequestOutput]]:
    """Every sample of each mode as a request of its own."""
    return {mode: _samples_apart(wide, mode) for mode in MODES}


def _samples_apart(engine: Engine, mode: ModeName) -> list[RequestOutput]:
    core, index = engine.parts.core, count()
    add = core.add

    def add_as_sample(key: int, request: SlotRequest, **more: Any) -> None:
        add(key, replace(request, sample_index=next(index)), **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "add", add_as_sample)
        return generate(engine, [PROMPT] * COUNT, replace(PARAMS, mode=mode))


def assert_alike(many: RequestOutput, alone: list[RequestOutput]) -> None:
    assert len(many.outputs) == COUNT
    for i, one in enumerate(alone):
        assert decisions(many, i) == decisions(one)
        assert scores(many, i) == pytest.approx(scores(one), abs=1e-5)
    assert len({output.token_ids for output in many.outputs}) == COUNT


@pytest.mark.parametrize("mode", MODES)
def test_every_token_is_read_once(
    wide: Engine, alone: dict[ModeName, list[RequestOutput]], mode: ModeName
) -> None:
    [many] = generate(wide, [PROMPT], replace(PARAMS, n=COUNT, mode=mode))
    assert_alike(many, alone[mode])
    assert read(many.metrics) == expected(wide, many, mode)
    # What they save is the prompt, but for its last token, which writers read to write the next.
    prompt = len(many.prompt_token_ids) - 1
    apart = sum((result.metrics for result in alone[mode]), start=Metrics())
    writer = Role.DRAFT if mode == "rsd" else Role[mode.upper()]
    assert read(many.metrics)[writer] == read(apart)[writer] - (COUNT - 1) * prompt


@pytest.mark.parametrize("mode", MODES)
def test_pages_of_the_prompt_are_held_once(wide: Engine, mode: ModeName) -> None:
    core = wide.parts.core
    state, sizes = core.state, core.loop.tokens_per_page
    total = int(state.free_pages.shape[0])
    peak = (0, 0)  # held, and named by all page tables

    def look() -> None:
        nonlocal peak
        held = total - int(state.num_free)
        assert held == sum(held_by(role) for role in Role)
        peak = max(peak, (held, int(state.num_pages.sum())))

    def held_by(role: Role) -> int:
        shared = shared_tokens(wide, role) // sizes[role]
        pages = state.num_pages[role].tolist()
        own = [max(0, held - shared) for held in pages]
        return sum(own) + min(shared, max(pages))

    with short_launches(wide, 1), around_launches(core, before=look):
        generate(wide, [PROMPT], replace(PARAMS, n=COUNT, mode=mode))
    held, named = peak
    roles = list(Role) if mode == "rsd" else [Role[mode.upper()]]
    shared = sum(shared_tokens(wide, role) // sizes[role] for role in roles)
    assert shared > 2 * len(roles)
    # Many samples were still there at the peak, with all of the prompt's pages in their tables.
    assert held < named - 8 * shared
    assert all_pages_free(wide)


@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("slots", [1, 5])
def test_fewer_slots_than_samples(
    tiny: TinyModels,
    wide: Engine,
    alone: dict[ModeName, list[RequestOutput]],
    slots: int,
    caching: bool,
) -> None:
    """Later samples find the prompt in the cache, or one reads it again for those that follow."""
    with engine_of(tiny, slots, caching=caching) as engine:
        for mode in MODES:
            [many] = generate(engine, [PROMPT], replace(PARAMS, n=COUNT, mode=mode))
            assert_alike(many, alone[mode])
            found, least = read(many.metrics), expected(wide, many, mode)
            if caching:
                # The last token of a context is never found, and a PRM reads it with the prompt.
                again = found.pop(Role.PRM) - least.pop(Role.PRM)
                assert found == least and 0 <= again < COUNT
            else:
                assert all(tokens >= least[role] for role, tokens in found.items())
            engine.reset_prefix_cache()
        assert all_pages_free(engine)


def read(metrics: Metrics) -> dict[Role, int]:
    roles = {Role.DRAFT: metrics.draft, Role.TARGET: metrics.target, Role.PRM: metrics.prm}
    return {role: found.tokens_read for role, found in roles.items()}


def shared_tokens(engine: Engine, role: Role) -> int:
    """Of the prompt, that a role reads before anything is sampled."""
    if role == Role.PRM:
        prm = engine.parts.models.prm
        assert prm is not None
        return len(prm.format.prompt_ids(PROMPT))
    return len(engine.get_tokenizer().encode(PROMPT)) - 1


def expected(engine: Engine, result: RequestOutput, mode: ModeName) -> dict[Role, int]:
    """Tokens that are read where each is read once: the prompt for all, then what samples write."""
    roles = Role if mode == "rsd" else [Role[mode.upper()]]
    prompt = {role: shared_tokens(engine, role) for role in roles}
    found = dict.fromkeys(Role, 0) | prompt
    for output in result.outputs:
        reads = Reads(engine, prompt)
        (reads.rsd if mode == "rsd" else reads.one_writer)(output)
        for role in roles:
            found[role] += reads.count[role]
    return found


class Reads:
    """What the models read for one sample after its prompt."""

    def __init__(self, engine: Engine, prompt: dict[Role, int]) -> None:
        self._prm = engine.parts.models.prm
        self._at = dict(prompt)  # tokens of its context that each has read
        self.count = dict.fromkeys(prompt, 0)

    def one_writer(self, output: CompletionOutput) -> None:
        [role] = self._at
        self._read(role, self._at[role] + len(output.token_ids))

    def rsd(self, output: CompletionOutput) -> None:
        length, prm_length = self._at[Role.DRAFT] + 1, self._at[Role.PRM]
        for step in output.steps:
            drafted = step.rejected or step
            self._read(Role.DRAFT, length + len(drafted.token_ids) - 1)
            self._read(Role.PRM, prm_length + self._prm_tokens(drafted.text))
            if step.rejected:
                self._at[Role.DRAFT], self._at[Role.PRM] = length, prm_length
                self._read(Role.TARGET, length + len(step.token_ids) - 1)
            length += len(step.token_ids)
            prm_length += self._prm_tokens(step.text)

    def _read(self, role: Role, end: int) -> None:
        self.count[role] += end - self._at[role]
        self._at[role] = end

    def _prm_tokens(self, text: str) -> int:
        assert self._prm is not None
        ids = self._prm.format.encoder.encode(text.removesuffix("\n\n"), add_special_tokens=False)
        return len(ids.ids) + len(self._prm.format.separator_ids)
