"""Candidates of a step, and beams of them: the engine against the naive implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from rsd_engine import (
    GSI,
    Beam,
    Best,
    Clip,
    Constant,
    Engine,
    RequestOutput,
    SamplingParams,
    Softmax,
    Step,
    Threshold,
)
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.steps.policies import Policy
from rsd_engine.steps.selection import Selection
from tests.engine.harness.runs import PROMPTS, all_pages_free, generate
from tests.engine.oracles.candidates import (
    Asked,
    ChosenStep,
    Naive,
    Scored,
    Solution,
    best,
    softmax,
)
from tests.engine.oracles.naive import NaiveModels
from tests.tiny_models import TinyModels

SEED, SLOTS = 5, 12


@dataclass(frozen=True)
class Way:
    """What is asked for, and the algorithm of the oracle that it names."""

    select: Selection
    policy: Policy | None
    naive: Callable[[Naive], Solution]
    candidates: int = 3

    def params(self, temperature: float, max_tokens: int, n: int) -> SamplingParams:
        return SamplingParams(
            n=n, temperature=temperature, max_tokens=max_tokens, seed=SEED, policy=self.policy,
            step_candidates=self.candidates, select=self.select,
        )  # fmt: skip


TINY: Mapping[str, Way] = {
    "best": Way(Best(), Threshold(0.5), lambda naive: naive.select(best)),
    "softmax": Way(Softmax(8.0), Constant(0.5), lambda naive: naive.select(softmax(8.0))),
    "gsi": Way(GSI(8.0, -2.0), None, lambda naive: naive.tilt(8.0, -2.0)),
    "beam": Way(Beam(2), Clip(), lambda naive: naive.beams(2)),
    "beam of single drafts": Way(Beam(3), Threshold(0.5), lambda naive: naive.beams(3), 1),
}
DEMO: Mapping[str, Way] = {
    "best": Way(Best(), Threshold(0.7), TINY["best"].naive),
    "softmax": Way(Softmax(2.0), Threshold(0.7), lambda naive: naive.select(softmax(2.0))),
    "gsi": Way(GSI(), None, lambda naive: naive.tilt(20.0, 10.0)),
    "beam": Way(Beam(2), Threshold(0.7), TINY["beam"].naive),
}


def chosen(step: Step) -> ChosenStep:
    rejected = Scored(step.rejected.text, step.rejected.reward) if step.rejected else None
    lost = tuple(Scored(one.text, one.reward, one.score) for one in step.candidates)
    return ChosenStep(step.text, step.source, step.reward, rejected, lost)


def assert_same(ours: Sequence[ChosenStep], theirs: Sequence[ChosenStep]) -> None:
    """Texts and decisions are equal, rewards within rounding."""
    assert list(map(told, ours)) == list(map(told, theirs))
    for mine, other in zip(ours, theirs, strict=True):
        assert rewards(mine) == pytest.approx(rewards(other), abs=1e-4)


def told(step: ChosenStep) -> tuple[object, ...]:
    rejected = step.rejected.text if step.rejected else None
    return step.text, step.source, rejected, [one.text for one in step.lost]


def rewards(step: ChosenStep) -> list[float | None]:
    lost = [number for one in step.lost for number in (one.reward, one.score)]
    return [step.reward, step.rejected.reward if step.rejected else None, *lost]


def check(
    results: Sequence[RequestOutput],
    questions: Sequence[str],
    models: NaiveModels,
    way: Way,
    params: SamplingParams,
) -> list[ChosenStep]:
    """All steps of all results, which are those of the oracle."""
    assert params.max_tokens is not None
    steps: list[ChosenStep] = []
    for question, result in zip(questions, results, strict=True):
        for output in result.outputs:
            asked = Asked(
                result.prompt_token_ids, question, way.policy or Constant(1.0), params.max_tokens,
                way.candidates, SEED, output.index, params.temperature,
            )  # fmt: skip
            found = [chosen(step) for step in output.steps]
            assert_same(found, way.naive(Naive(models, asked)).steps)
            steps += found
    return steps


@pytest.fixture(scope="module")
def tiny_engine(tiny: TinyModels) -> Iterator[Engine]:
    with Engine(**tiny.sources(), max_num_seqs=SLOTS, step_ends="tokens", device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny_models(tiny: TinyModels) -> NaiveModels:
    return NaiveModels.load(tiny.draft, tiny.target, tiny.prm)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", TINY)
def test_tiny_models(
    tiny_engine: Engine, tiny_models: NaiveModels, name: str, temperature: float
) -> None:
    params = TINY[name].params(temperature, max_tokens=24, n=2)
    results = generate(tiny_engine, PROMPTS[:4], params)
    steps = check(results, PROMPTS[:4], tiny_models, TINY[name], params)
    assert {step.source for step in steps} == {"draft", "target"}
    if temperature and TINY[name].candidates > 1:
        assert any(len({one.text for one in step.lost}) > 1 for step in steps)
    assert all_pages_free(tiny_engine)


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[Engine, NaiveModels]]:
    folders = [checkpoint_dir(role) for role in ("draft", "target", "prm")]
    with Engine(*folders, dtype="float32", device="cpu", max_num_seqs=SLOTS) as engine:
        yield engine, NaiveModels.load(*folders)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DEMO)
def test_demo_problems(
    demo: tuple[Engine, NaiveModels], name: str, temperature: float, count: int
) -> None:
    engine, models = demo
    questions = [problem.question for problem in make_problems(11, "test", count)]
    params = DEMO[name].params(temperature, max_tokens=160, n=1)
    chats = [[{"role": "user", "content": question}] for question in questions]
    results = engine.chat(chats, params, use_tqdm=False)
    steps = check(results, questions, models, DEMO[name], params)
    if count > 1:
        assert {step.source for step in steps} == {"draft", "target"}
    assert all_pages_free(engine)
