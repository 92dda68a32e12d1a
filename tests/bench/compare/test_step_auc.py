"""Which steps are judged, and the area under the curve of their rewards."""

from __future__ import annotations

import math

import pytest

from bench.compare.step_auc import JudgedSteps
from rsd_engine import CompletionOutput, RejectedStep, Step
from rsd_engine.demo.problems import Problem

PROBLEM = Problem(
    question="Ann has 2 pens and buys 3. How many has she now?",
    steps=("Ann has 2 pens.", "She has 2 + 3 = 5 pens.", "The answer is \\boxed{5}."),
    answer=5,
    num_steps=2,
    family="test",
)
RIGHT = PROBLEM.steps


def step(text: str, reward: float | None, rejected: RejectedStep | None = None) -> Step:
    source = "target" if reward is None else "draft"
    return Step(text, (), source, reward, rejected)  # type: ignore[arg-type]


def solution(*steps: Step) -> CompletionOutput:
    text = "".join(s.text for s in steps)
    return CompletionOutput(0, text, (), "stop", None, steps)


def judged(*steps: Step) -> JudgedSteps:
    found = JudgedSteps()
    found.add([PROBLEM], [solution(*steps)])
    return found


def test_right_steps_and_the_first_wrong_one_count() -> None:
    found = judged(
        step(RIGHT[0] + "\n\n", 0.9), step("She has 2 + 3 = 6 pens.\n\n", 0.2), step(RIGHT[2], 0.1)
    )
    assert (len(found), found.num_wrong) == (2, 1)
    assert found.auc() == 1.0


def test_a_rejected_step_counts_and_its_rewrite_is_what_follows() -> None:
    wrong = RejectedStep("She has 2 * 3 = 6 pens.\n\n", (), 0.8)
    found = judged(
        step(RIGHT[0] + "\n\n", 0.5), step(RIGHT[1] + "\n\n", None, wrong), step(RIGHT[2], 0.9)
    )
    assert (len(found), found.num_wrong) == (3, 1)
    assert found.auc() == 0.5


def test_operands_of_a_sum_may_swap() -> None:
    found = judged(step(RIGHT[0] + "\n\n", 0.5), step("She has 3 + 2 = 5 pens.\n\n", 0.5))
    assert (len(found), found.num_wrong) == (2, 0)


def test_a_step_met_twice_counts_once() -> None:
    found = judged(step(RIGHT[0] + "\n\n", 0.5))
    found.add([PROBLEM], [solution(step(RIGHT[0] + "\n\n", 0.5), step("no", 0.1))])
    assert (len(found), found.num_wrong) == (2, 1)


def test_ties_count_half() -> None:
    assert judged(step(RIGHT[0] + "\n\n", 0.5), step("no", 0.5)).auc() == 0.5


def test_a_reward_that_is_not_a_number_is_the_lowest() -> None:
    wrong = RejectedStep("no\n\n", (), math.nan)
    assert judged(step(RIGHT[0] + "\n\n", None, wrong), step(RIGHT[1], 0.0)).auc() == 1.0


@pytest.mark.parametrize("steps", [(), (step(RIGHT[0], 0.5),), (step("no", 0.5),)])
def test_without_both_verdicts_there_is_none(steps: tuple[Step, ...]) -> None:
    assert judged(*steps).auc() is None
