"""Every family of PRMs in the loop: its rewards are those of its authors' own way of scoring.

The oracle is a model of transformers that reads the whole template anew for every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from rsd_engine.models.registry import reward_family
from tests.engine.harness.runs import PROMPTS, all_pages_free, generate, harsh
from tests.models.reward.family_checkpoints import CASES, Prm
from tests.tiny_models import TinyModels

_TEMPERATURES = (0.0, 1.0, 1.0, 0.7, 0.0, 1.2)
BY_TEXT = {"Math-Shepherd", "RLHFlow-PRM", "VersaPRM", "Universal-PRM"}


@dataclass(frozen=True)
class Family:
    name: str
    prm: Prm
    engine: Engine
    middle: float  # rewards lie on both sides of it

    @property
    def params(self) -> list[SamplingParams]:
        return params_with(Threshold(self.middle))


def params_with(policy: Threshold) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=t, seed=s, max_tokens=60, policy=policy)
        for s, t in enumerate(_TEMPERATURES)
    ]


@contextmanager
def running(name: str, tiny: TinyModels, folder: Path) -> Iterator[Family]:
    case = CASES[name]
    prm = case.make(folder / case.folder)
    with Engine(tiny.draft, tiny.target, prm.folder, max_num_seqs=4, device="cpu") as engine:
        results = generate(engine, PROMPTS, params_with(Threshold(-1.5)))
        rewards = [scored.reward for result in results for scored in scored_steps(result)]
        yield Family(name, prm, engine, median(rewards))


@pytest.fixture(scope="module", params=CASES)
def family(
    request: pytest.FixtureRequest, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    with running(request.param, tiny, tmp_path_factory.mktemp("family")) as found:
        yield found


@dataclass(frozen=True)
class Scored:
    """A step's reward, and the texts of the steps up to it."""

    steps: list[str]
    reward: float


def scored_steps(result: RequestOutput) -> list[Scored]:
    found, kept = [], list[str]()
    for step in result.outputs[0].steps:
        if step.rejected:
            text = step.rejected.text.removesuffix("\n\n")
            found.append(Scored([*kept, text], step.rejected.reward))
        kept = [*kept, step.text.removesuffix("\n\n")]
        if step.reward is not None:
            found.append(Scored(kept, step.reward))
    return found


def is_separable(name: str, steps: list[str]) -> bool:
    """Whether the authors' one text falls into tokens where its steps meet.

    Blanks where two steps meet become tokens with what stands between them, and with VersaPRM the
    authors' code then no longer finds its separators.
    """
    if name == "VersaPRM":
        return all(step == step.strip() != "" for step in steps)
    if name == "Universal-PRM":
        return all(step[:1] not in ("", "\n") for step in steps)
    if name == "Math-Shepherd":
        return steps[0].strip() != ""
    return True


def check_rewards(family: Family, results: list[RequestOutput]) -> None:
    rewards, later, skipped = [], 0, 0
    for result in results:
        for scored in scored_steps(result):
            if not is_separable(family.name, scored.steps):
                skipped += 1
                continue
            row = family.prm.row(result.prompt or "", scored.steps)
            assert scored.reward == pytest.approx(family.prm.reward(row), abs=1e-4)
            rewards.append(scored.reward)
            later += len(scored.steps) > 1
    assert later > 4 and len(rewards) > 10 and 2 * len(rewards) > skipped
    low, high = reward_family(family.name).reward_range
    assert low <= min(rewards) < family.middle < max(rewards) <= high
    assert max(rewards) - min(rewards) > 0.05


def test_the_family_is_found(family: Family) -> None:
    prm = family.engine.parts.models.prm
    assert prm is not None and prm.family is reward_family(family.name)
    assert (prm.shared_vocabulary is not None) == (family.name not in BY_TEXT)
    assert (family.engine.parts.core.loop.merges is None) == (family.name in BY_TEXT)


def test_rewards_are_the_authors(family: Family) -> None:
    """Step by step, after rollbacks, in a batch whose slots are in different phases."""
    check_rewards(family, generate(family.engine, PROMPTS, family.params))
    assert all_pages_free(family.engine)


def test_the_prm_reads_every_token_once(family: Family) -> None:
    prm = family.engine.parts.models.prm
    assert prm is not None
    for result in generate(family.engine, PROMPTS, family.params):
        if not all(is_separable(family.name, s.steps) for s in scored_steps(result)):
            continue
        question = result.prompt or ""
        committed = len(prm.format.prompt_ids(question))
        expected, standing, kept = 0, 0, list[str]()  # standing: read and not rolled back
        for step in result.outputs[0].steps:
            if step.rejected:
                text = step.rejected.text.removesuffix("\n\n")
                expected += len(family.prm.row(question, [*kept, text])) - standing
                standing = committed
            kept = [*kept, step.text.removesuffix("\n\n")]
            if not is_separable(family.name, kept):
                break
            row = family.prm.row(question, kept)
            committed = len(row) - family.prm.num_transient
            if step.reward is not None:
                expected += len(row) - standing
                standing = committed
        else:
            counted = result.metrics.prm
            assert counted.tokens_read + counted.cached_tokens == expected


def test_preempted_runs(tiny: TinyModels, tmp_path: Path) -> None:
    """The family with most that is peculiar: ids before a step, and another vocabulary."""
    with running("RLHFlow-PRM", tiny, tmp_path) as family:
        with harsh(family.engine):
            results = generate(family.engine, PROMPTS, family.params)
        assert family.engine.num_preemptions > 0
        check_rewards(family, results)
        assert all_pages_free(family.engine)
