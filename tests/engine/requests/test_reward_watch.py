"""Rewards that decide nothing are told, once."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest

from rsd_engine import Constant, Engine, Metrics, SamplingParams, Threshold
from rsd_engine.engine.reward_watch import MIN_SCORED, reward_problem
from rsd_engine.outputs import CandidateCounts
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import generate
from tests.engine.harness.scripted import spoiled
from tests.tiny_models import TinyModels


@pytest.mark.parametrize(
    ("accepted", "rejected", "nan", "said"),
    [
        (0, 0, 0, None),
        (0, 31, 0, None),
        (0, 31, 31, None),
        (0, 32, 0, "none of 32 draft steps was accepted"),
        (1, 99, 0, None),
        (0, 32, 32, "32 of 32 rewards are NaN"),
        (20, 20, 20, "20 of 40 rewards are NaN"),
        (21, 19, 19, None),
        (32, 0, 0, None),
    ],
)
def test_when_something_is_said(accepted: int, rejected: int, nan: int, said: str | None) -> None:
    problem = reward_problem(
        Metrics(steps_accepted=accepted, steps_rejected=rejected, nan_rewards=nan)
    )
    assert (problem or "").startswith(said or "") and (problem is None) == (said is None)


def test_rewards_of_candidates_count() -> None:
    """32 steps were decided upon, and 48 others had a reward."""
    candidates = CandidateCounts(made=80, taken=32)
    counts = Metrics(steps_accepted=20, steps_rejected=12, candidates=candidates)
    assert reward_problem(replace(counts, nan_rewards=39)) is None
    problem = reward_problem(replace(counts, nan_rewards=40)) or ""
    assert problem.startswith("40 of 80 rewards are NaN")


@pytest.mark.parametrize("kind", ["NaN", "rejected", "fine"])
def test_the_log_says_it_once(
    kind: str, tiny: TinyModels, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=40, max_step_tokens=2)
    policy = Threshold(1.1) if kind == "rejected" else Constant(1.0)
    with Engine(**tiny.sources(), policy=policy, max_num_seqs=4, device="cpu") as engine:
        caplog.set_level(logging.WARNING, "rsd_engine")
        while engine.metrics.steps_accepted + engine.metrics.steps_rejected < 3 * MIN_SCORED:
            if kind == "NaN":
                with spoiled(engine, Role.PRM, math.nan, prompt_length=4):
                    generate(engine, ["abc"], params)
            else:
                generate(engine, ["abc"], params)
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    expected = {"NaN": "rewards are NaN, which", "rejected": "draft steps was accepted"}
    assert len(said) == (0 if kind == "fine" else 1)
    assert all(expected[kind] in text for text in said)
