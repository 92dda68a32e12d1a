"""The engine against the naive loop with two vocabularies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rsd_engine import Clip, Constant, Engine, Logistic, SamplingParams, Threshold
from rsd_engine.steps.policies import Policy
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh, scores
from tests.engine.two_vocabularies.families import Family

POLICIES: list[Policy] = [Threshold(0.5), Constant(0.5), Logistic(10.0, 0.5)]
MAX_TOKENS = 28
SLOW = pytest.mark.slow


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_the_engine_against_the_naive_loop(
    family: Family, policy: Policy, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=MAX_TOKENS, seed=5, policy=policy)
    steps = [step for one in family.check(params) for step in one.steps]
    assert {step.source for step in steps} == {"draft", "target"}
    assert sum(step.rejected is not None for step in steps) >= 2


def test_every_token_is_read_once(one_family: Family) -> None:
    """Rejected tokens apart: a context only grows, and what a model has read of it stays."""
    params = SamplingParams(temperature=0.0, max_tokens=40, policy=Threshold(0.6), seed=5)
    prompts = [*PROMPTS, "abc" * 30]  # 30 tokens for the draft, and 90 for the target
    naive = one_family.check(params, prompts)
    one_family.engine.reset_prefix_cache()
    results = generate(one_family.engine, prompts, params)
    for one, result in zip(naive, results, strict=True):
        target = result.metrics.target
        if target.passes:
            assert target.tokens_read + target.cached_tokens == one.read["target"]
        assert bool(target.passes) == (one.read["target"] > 0)
        # The last token of a rejected step is not read.
        again = sum(len(s.rejected.token_ids) - 1 for s in result.outputs[0].steps if s.rejected)
        assert result.metrics.draft.tokens_read <= one.read["draft"] + again
    assert sum(one.read["target"] > 0 for one in naive) >= 2


@pytest.mark.parametrize("max_tokens", [1, 9, pytest.param(60, marks=SLOW)])
def test_lengths(one_family: Family, max_tokens: int) -> None:
    """`max_tokens` and `min_tokens` count the kept tokens of both writers."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=3, policy=Constant(0.5))
    for minimum in (0, min(20, max_tokens)):
        one_family.check(replace(params, min_tokens=minimum))
        results = generate(one_family.engine, PROMPTS, replace(params, min_tokens=minimum))
        lengths = [len(result.outputs[0].token_ids) for result in results]
        assert min(lengths) >= minimum and max(lengths) <= max_tokens


@pytest.mark.parametrize("length", [112, *(pytest.param(n, marks=SLOW) for n in (111, 118, 135))])
def test_a_context_that_becomes_full(one_family: Family, length: int) -> None:
    """Of any writer: of the one that has just written, or of the one whose turn would be next."""
    folders = one_family.folders
    with Engine(**folders.sources(), max_model_len=length, max_num_seqs=3, device="cpu") as engine:
        small = replace(one_family, engine=engine)
        prompts = [PROMPTS[3], PROMPTS[3] + "x", *("abc" * n for n in (33, 34, 36))]
        for policy in (Constant(0.5), Constant(0.0), Constant(0.9)):
            params = SamplingParams(temperature=1.0, max_tokens=400, seed=2, policy=policy)
            small.check(params, prompts, capacity=length)
            results = generate(engine, prompts, params)
            reasons = [result.outputs[0].finish_reason for result in results]
            assert set(reasons) <= {"length", "stop"} and "length" in reasons
            for result in results:
                output = result.outputs[0]
                assert output.text == "".join(step.text for step in output.steps)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_preemption(one_family: Family, temperature: float) -> None:
    """Both contexts are the host's, so nothing is lost with the pages."""
    engine = one_family.engine
    params = SamplingParams(
        temperature=temperature, max_tokens=30, seed=1, policy=Logistic(8.0, 0.5)
    )
    wanted, before = generate(engine, PROMPTS, params), engine.num_preemptions
    with harsh(engine):
        found = generate(engine, PROMPTS, params)
    assert engine.num_preemptions > before + 5
    for one, two in zip(wanted, found, strict=True):
        assert decisions(one) == decisions(two)
        assert scores(one) == pytest.approx(scores(two), abs=1e-5)
    assert all_pages_free(engine)


@pytest.mark.parametrize("executor", ["simulated-loop"])
def test_every_executor_decides_alike(one_family: Family, executor: str) -> None:
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, max_tokens=30, seed=9, policy=Clip())
        wanted = generate(one_family.engine, PROMPTS, params)
        sources = one_family.folders.sources()
        with Engine(**sources, max_num_seqs=3, device="cpu", executor=executor) as engine:
            found = generate(engine, PROMPTS, params)
        assert list(map(decisions, found)) == list(map(decisions, wanted))
        assert any(step.rejected for result in wanted for step in result.outputs[0].steps)


def test_independence(one_family: Family) -> None:
    params = [
        SamplingParams(temperature=t, seed=s, max_tokens=30, max_step_tokens=m, policy=p, n=2)
        for s, (t, m, p) in enumerate(
            [(0.0, None, Clip()), (1.0, 6, Constant(0.3)), (0.7, None, Threshold(0.5))] * 2
        )
    ]
    together = generate(one_family.engine, PROMPTS, params)
    for prompt, one, result in zip(PROMPTS, params, together, strict=True):
        [alone] = generate(one_family.engine, [prompt], one)
        for sample in range(2):
            assert decisions(alone, sample) == decisions(result, sample)
