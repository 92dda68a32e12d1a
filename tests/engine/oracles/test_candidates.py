"""The oracle of candidates where it must be something known: one candidate, or equal ones."""

from __future__ import annotations

from collections import defaultdict

import pytest

from rsd_engine import Constant, Threshold
from rsd_engine.steps.policies import Policy
from tests.engine.harness.runs import PROMPTS
from tests.engine.oracles.candidates import Asked, ChosenStep, Naive, Solution, best, softmax
from tests.engine.oracles.naive import NaiveModels, NaiveStep, naive_rsd
from tests.tiny_models import TinyModels

POLICIES: list[Policy] = [Threshold(0.5), Constant(0.5)]


@pytest.fixture(scope="module")
def models(tiny: TinyModels) -> NaiveModels:
    return NaiveModels.load(tiny.draft, tiny.target, tiny.prm)


def asked(
    models: NaiveModels, question: str, candidates: int, policy: Policy, temperature: float = 0.0
) -> Asked:
    prompt = tuple(models.tokenizer.encode(question))
    return Asked(prompt, question, policy, 24, candidates, temperature=temperature)


def plain(step: ChosenStep) -> NaiveStep:
    """As a step of one draft, which was scored."""
    rejected = step.rejected
    reward = rejected.reward if rejected else step.reward
    text = rejected.text if rejected else None
    return NaiveStep(step.text, step.source, reward, text)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_one_candidate_is_plain_rsd(models: NaiveModels, policy: Policy) -> None:
    """And so are three of a greedy draft, which are equal."""
    for question in PROMPTS:
        wanted = naive_rsd(models, [*asked(models, question, 1, policy).prompt], question, policy,
                           24, seed=5)  # fmt: skip
        for count in (1, 3):
            naive = Naive(models, asked(models, question, count, policy))
            for select in (best, softmax(20.0)):
                found = naive.select(select).steps
                assert [plain(step) for step in found] == wanted
                assert all(len(step.lost) == count - 1 for step in found)


def test_one_beam_of_one_candidate_is_plain_rsd_with_scored_rewrites(models: NaiveModels) -> None:
    rewards = []
    for question in PROMPTS:
        naive = Naive(models, asked(models, question, 1, Threshold(0.5), temperature=1.0))
        beam, wanted = naive.beams(1), naive.select(best)
        assert beam.ids == wanted.ids
        rewards += [step.reward for step in beam.steps if step.rejected]
    assert len(rewards) >= 2 and None not in rewards


def test_extremes_are_each_other(models: NaiveModels) -> None:
    """A steep softmax takes the best; GSI with a bar out of reach is the target's softmax."""
    for question in PROMPTS[:3]:
        naive = Naive(models, asked(models, question, 3, Constant(1.0), temperature=1.0))
        assert naive.select(softmax(1e9)) == naive.select(best)
        by_target = naive.tilt(20.0, 1e9).steps
        assert all(s.source == "target" and s.rejected and len(s.lost) == 4 for s in by_target)
        assert all(s.source == "draft" for s in naive.tilt(20.0, -1e9).steps)


def test_more_candidates_and_beams_find_higher_rewards(models: NaiveModels) -> None:
    def reward(solution: Solution) -> float:
        return sum(step.reward or 0.0 for step in solution.steps) / len(solution.steps)

    found = defaultdict[str, float](float)
    for question in PROMPTS[:3]:
        one, four = (
            Naive(models, asked(models, question, n, Constant(1.0), temperature=1.0))
            for n in (1, 4)
        )
        found["one"] += reward(one.select(best))
        found["best"] += reward(four.select(best))
        found["beams"] += four.beams(3).reward
        found["last"] += four.select(best).reward
    assert found["one"] + 0.3 < found["best"] and found["last"] < found["beams"]
