"""Requests with candidates beside others give what they give alone, however pages come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from rsd_engine import (
    GSI,
    Beam,
    Best,
    Engine,
    RequestOutput,
    SamplingParams,
    Softmax,
    Step,
    Threshold,
)
from tests.engine.harness.runs import PROMPTS, all_pages_free, decision, generate, harsh
from tests.tiny_models import TinyModels

PLAIN = SamplingParams(temperature=1.0, max_tokens=24, policy=Threshold(0.5))
SLOW = pytest.mark.slow
MIXED = [
    replace(PLAIN, step_candidates=3, select=Best()),
    replace(PLAIN, n=3),
    replace(PLAIN, step_candidates=3, select=GSI(8.0, -2.0), policy=None),
    PLAIN,
    replace(PLAIN, step_candidates=2, select=Beam(2)),
    replace(PLAIN, n=2, mode="target"),
    replace(PLAIN, n=2, step_candidates=2, select=Softmax(8.0)),
]


@pytest.fixture(scope="module", params=["eager", "simulated-loop"])
def mixed_engine(tiny: TinyModels, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(**tiny.sources(), max_num_seqs=6, device="cpu", executor=request.param) as engine:
        yield engine


@pytest.mark.parametrize(
    ("preempt_every", "rounds"), [(5, 1), *(pytest.param(k, 4, marks=SLOW) for k in (2, 3, 7))]
)
def test_candidates_beside_others(mixed_engine: Engine, preempt_every: int, rounds: int) -> None:
    engine, params = mixed_engine, [replace(p, seed=i) for i, p in enumerate(MIXED * rounds)]
    prompts = [PROMPTS[i % 4] for i in range(len(params))]
    wanted = [generate(engine, [q], p)[0] for q, p in zip(prompts, params, strict=True)]
    before = engine.num_preemptions
    with harsh(engine, preempt_every=preempt_every):
        found = generate(engine, prompts, params)
    assert engine.num_preemptions > before + 5 * rounds
    assert list(map(told, found)) == list(map(told, wanted))
    assert all_pages_free(engine)


def told(result: RequestOutput) -> list[list[tuple[object, ...]]]:
    """Every decision, and the candidates that lost."""
    return [[step_told(step) for step in output.steps] for output in result.outputs]


def step_told(step: Step) -> tuple[object, ...]:
    lost = [(one.source, one.token_ids) for one in step.candidates]
    return (*decision(step), lost)
