"""The engine against the naive loop: same texts, same decisions, same rewards."""

from __future__ import annotations

import pytest

from rsd_engine import (
    Clip,
    Constant,
    Engine,
    Logistic,
    RequestOutput,
    SamplingParams,
    Sigmoidal,
    Threshold,
)
from rsd_engine.demo import checkpoint_dir
from rsd_engine.steps.policies import Policy
from tests.engine.harness.runs import PROMPTS, generate
from tests.engine.oracles.naive import NaiveModels, NaiveStep, naive_rsd
from tests.tiny_models import TinyModels

POLICIES: list[Policy] = [
    Threshold(0.5), Constant(0.5), Clip(), Sigmoidal(), Logistic(10.0, 0.5),
]  # fmt: skip


def engine_steps(result: RequestOutput) -> list[NaiveStep]:
    return [
        NaiveStep(
            step.text,
            step.source,
            step.rejected.reward if step.rejected else step.reward,
            step.rejected.text if step.rejected else None,
        )
        for step in result.outputs[0].steps
    ]


def assert_same(ours: list[NaiveStep], theirs: list[NaiveStep]) -> None:
    assert [(s.text, s.source, s.rejected) for s in ours] == [
        (s.text, s.source, s.rejected) for s in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.reward == pytest.approx(other.reward, abs=1e-4)


@pytest.fixture(scope="module")
def naive_models(tiny: TinyModels) -> NaiveModels:
    return NaiveModels.load(tiny.draft, tiny.target, tiny.prm)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_tiny_models(engine: Engine, naive_models: NaiveModels, policy: Policy) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, seed=5, policy=policy)
    results = generate(engine, PROMPTS, params)
    sources, rejections = set(), 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = list(result.prompt_token_ids)
        theirs = naive_rsd(naive_models, ids, prompt, policy, 24, seed=5)
        assert_same(engine_steps(result), theirs)
        sources |= {step.source for step in theirs}
        rejections += sum(step.rejected is not None for step in theirs)
    assert sources == {"draft", "target"} and rejections >= 3


def _demo_problems(count: int) -> list[str]:
    from rsd_engine.demo.problems import generate as make_problems

    return [problem.question for problem in make_problems(11, "test", count)]


@pytest.fixture(scope="module")
def demo_folders() -> TinyModels:
    """The demo family's checkpoints."""
    try:
        return TinyModels(checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm"))
    except FileNotFoundError as error:
        pytest.skip(f"the demo checkpoints are not here: {error}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_demo_family(demo_folders: TinyModels, count: int) -> None:
    check_against_naive(demo_folders, _demo_problems(count), max_tokens=160)


def check_against_naive(folders: TinyModels, questions: list[str], max_tokens: int) -> None:
    """Every question with each policy, greedy, in chat, in float32: texts, decisions, rewards."""
    models = NaiveModels.load(folders.draft, folders.target, folders.prm)
    policies = [Threshold(0.7), *POLICIES[1:]]
    asked = [(question, policy) for policy in policies for question in questions]
    with Engine(**folders.sources(), dtype="float32", device="cpu") as engine:
        chats = [[{"role": "user", "content": question}] for question, _ in asked]
        params = [
            SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=5, policy=policy)
            for _, policy in asked
        ]
        results = engine.chat(chats, params, use_tqdm=False)
    rejections = dict.fromkeys(policies, 0)
    for (question, policy), result in zip(asked, results, strict=True):
        ids = list(result.prompt_token_ids)
        theirs = naive_rsd(models, ids, question, policy, max_tokens, seed=5)
        assert_same(engine_steps(result), theirs)
        rejections[policy] += sum(step.rejected is not None for step in theirs)
    assert all(rejections.values()), rejections
    assert len(set(rejections.values())) > 2, "the policies decide alike"
