"""A request gives the tokens it gives alone, whatever else runs, is preempted or is overwritten."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from rsd_engine import Clip, Constant, Engine, Logistic, SamplingParams, Sigmoidal, Threshold
from rsd_engine.steps.policies import Policy
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh
from tests.engine.oracles.ties import differs_by_a_tie
from tests.tiny_models import TinyModels

POLICIES: list[Policy] = [
    Threshold(0.5), Constant(0.6), Clip(), Sigmoidal(), Logistic(8.0, 0.5), Threshold(0.7),
]  # fmt: skip
TIES_ALLOWED = 0.01  # of the requests


def mixed_requests(count: int, max_tokens: int) -> tuple[list[str], list[SamplingParams]]:
    """Prompts, lengths, seeds, temperatures and policies of all kinds, the same every time."""
    rng = random.Random(7)
    prompts = [rng.choice(PROMPTS) + " " + "ab1 "[: rng.randint(0, 4)] for _ in range(count)]
    params = [
        SamplingParams(
            temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 1.3]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 20]),
            seed=rng.randrange(1000),
            max_tokens=rng.randint(max_tokens // 4, max_tokens),
            max_step_tokens=rng.choice([None, 12]),
            policy=rng.choice(POLICIES),
            mode=rng.choice([None, None, None, None, "draft", "target"]),
        )
        for _ in range(count)
    ]
    return prompts, params


@pytest.fixture(params=[1, 4, 16])
def sized_engine(tiny: TinyModels, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(**tiny.sources(), max_num_seqs=request.param, device="cpu") as engine:
        yield engine


def check_independence(
    engine: Engine, prompts: list[str], params: list[SamplingParams], preempt_every: int
) -> None:
    alone = [generate(engine, [p], [q])[0] for p, q in zip(prompts, params, strict=True)]
    before = engine.num_preemptions
    with harsh(engine, preempt_every=preempt_every):
        together = generate(engine, prompts, params)
    slots = engine.parts.core.state.num_slots
    assert (engine.num_preemptions - before > len(prompts) // 4) == (slots > 1)
    differ = [i for i in range(len(prompts)) if decisions(alone[i]) != decisions(together[i])]
    for i in differ:
        assert differs_by_a_tie(engine, params[i], alone[i], together[i]), f"request {i}"
    assert len(differ) <= TIES_ALLOWED * len(prompts)
    assert all_pages_free(engine)
    # The mixture must be worth the name.
    steps = [step for result in together for step in result.outputs[0].steps]
    assert any(s.rejected for s in steps) and any(s.reward is not None for s in steps)
    assert len({tuple(map(str, decisions(result))) for result in together}) > len(prompts) // 2


def test_sixteen_requests(sized_engine: Engine) -> None:
    check_independence(sized_engine, *mixed_requests(16, max_tokens=20), preempt_every=7)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixty_four_requests(sized_engine: Engine) -> None:
    check_independence(sized_engine, *mixed_requests(64, max_tokens=80), preempt_every=7)
