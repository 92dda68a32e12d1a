"""Which steps are judged, and the area under the curve of their rewards."""

from __future__ import annotations

import pytest

from bench.compare.step_auc import JudgedSteps
from rsd_engine.demo.problems import Problem
from rsd_engine.evaluate.questions import demo_questions
from rsd_engine.evaluate.record import Counts, Record, ScoredText, StepRecord

PROBLEM = Problem(
    question="Ann has 2 pens and buys 3. How many has she now?",
    steps=("Ann has 2 pens.", "She has 2 + 3 = 5 pens.", "The answer is \\boxed{5}."),
    answer=5,
    num_steps=2,
    family="test",
)
RIGHT = PROBLEM.steps


def step(text: str, reward: float | None, rejected: ScoredText | None = None) -> StepRecord:
    return StepRecord(text, "target" if reward is None else "draft", reward, rejected)


def solution(*steps: StepRecord) -> Record:
    [question] = demo_questions([PROBLEM])
    return Record(
        question=question,
        method="rsd",
        settings={"threshold": 0.5},
        seed=0,
        text="".join(one.text for one in steps),
        found=None,
        correct=False,
        finish_reason="stop",
        counts=Counts(),
        seconds=0.0,
        steps=steps,
    )


def judged(*steps: StepRecord) -> JudgedSteps:
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
    wrong = ScoredText("She has 2 * 3 = 6 pens.\n\n", 0.8)
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


def test_a_step_without_a_reward_is_left_out() -> None:
    wrong = ScoredText("no\n\n", None)
    found = judged(step(RIGHT[0] + "\n\n", None, wrong), step(RIGHT[1], 0.0))
    assert (len(found), found.num_wrong) == (1, 0)


@pytest.mark.parametrize("steps", [(), (step(RIGHT[0], 0.5),), (step("no", 0.5),)])
def test_without_both_verdicts_there_is_none(steps: tuple[StepRecord, ...]) -> None:
    assert judged(*steps).auc() is None
