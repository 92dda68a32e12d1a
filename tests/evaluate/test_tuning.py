"""Thresholds for a budget: against a naive RSD whose answer at every threshold is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rsd_engine.evaluate.record import (
    Counts,
    Question,
    Record,
    ScoredText,
    StepRecord,
)
from rsd_engine.evaluate.statistics import ratio_interval
from rsd_engine.evaluate.tuning import (
    REJECT_ALL,
    Decision,
    Sweep,
    Trajectory,
    find_threshold,
    trajectory,
)

QUESTIONS = [f"q{number}" for number in range(80)]
STEPS = 5


def naive_rsd(question: str, threshold: float) -> Trajectory:
    """An answer whose rewards and lengths depend on who wrote each step before: on the path."""
    path, decisions, target, tokens = "", [], 0, 0
    for _ in range(STEPS):
        rng = random.Random(f"{question}/{path}")
        # A draft that goes wrong tends to go on so, unless the target steps in.
        reward = rng.betavariate(1.0, 3.0) if path.endswith("d") else rng.betavariate(3.0, 1.0)
        kept = reward >= threshold
        path += "d" if kept else "t"
        written = random.Random(f"{question}/{path}").randrange(5, 40)
        decisions.append(Decision(reward, kept, 4 * written))
        tokens += written
        target += 0 if kept else written
    return Trajectory(question, 0, tuple(decisions), target, tokens, correct=path.count("t") > 2)


def true_share(threshold: float) -> float:
    answers = [naive_rsd(question, threshold) for question in QUESTIONS]
    return sum(one.target_tokens for one in answers) / sum(one.tokens for one in answers)


class Asker:
    """Answers, and counts."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, questions: Sequence[str], threshold: float) -> list[Trajectory]:
        self.asked.append(list(questions))
        return [naive_rsd(question, threshold) for question in questions]


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.6, 0.9])
def test_what_is_expected_is_what_comes(budget: float) -> None:
    ask = Asker()
    threshold, sweep = find_threshold(ask, QUESTIONS, budget, start=0.7, passes=30)
    expected = sweep.at(threshold)
    assert expected.known == 1
    assert expected.share == pytest.approx(true_share(threshold), abs=1e-12)
    assert budget - 0.02 < expected.share <= budget  # one step of 400 is at most 0.7 %
    assert expected.low < expected.share < expected.high
    answers = [naive_rsd(question, threshold) for question in QUESTIONS]
    kept = [decision.kept for one in answers for decision in one.decisions]
    assert expected.acceptance == pytest.approx(sum(kept) / len(kept), abs=1e-12)
    assert expected.accuracy == pytest.approx(sum(one.correct for one in answers) / len(answers))
    # The first pass asks everything, the others only what is not known.
    assert ask.asked[0] == QUESTIONS
    assert all(0 < len(part) < len(QUESTIONS) for part in ask.asked[1:])


def test_one_pass_assumes_that_steps_stay_the_same() -> None:
    """With this draft, whose mistakes go on, that is wrong, and more passes mend it."""
    threshold, sweep = find_threshold(Asker(), QUESTIONS, 0.6, start=0.2, passes=1)
    expected = sweep.at(threshold)
    assert expected.known < 1
    assert expected.accuracy is None
    assert expected.share == pytest.approx(0.6, abs=0.02)
    assert abs(true_share(threshold) - 0.6) > 0.03


def test_expected_tokens_by_hand() -> None:
    decisions = (
        Decision(0.9, True, 60),
        Decision(0.4, False, 30),
        Decision(-float("inf"), False, 10),
    )
    answer = Trajectory("q", 0, decisions, target_tokens=11, tokens=25, correct=True)
    assert [answer.changed(t) for t in (0.3, 0.4, 0.41, 0.9, 0.91)] == [1, 1, 0, 0, 1]
    assert answer.expected_target_tokens(0.7) == 11  # known
    assert answer.expected_target_tokens(0.95) == 25  # 11 + 25 x 60 %, and not more than all
    assert answer.expected_target_tokens(0.2) == 11 - 25 * 0.3
    assert Sweep([answer]).at(0.2).acceptance == 2 / 3  # what has no reward is rejected anywhere


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [(0.0, 0.0), (0.49, 0.0), (0.5, 0.4), (0.99, 0.4), (1.0, REJECT_ALL)],
)
def test_thresholds_are_round_and_between_two_rewards(budget: float, threshold: float) -> None:
    answer = Trajectory("q", 0, (Decision(0.2, True, 8), Decision(0.6, True, 8)), 0, 10, True)
    assert Sweep([answer]).largest_threshold(budget) == threshold


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [(0.0, -REJECT_ALL), (0.5, -0.3), (0.99, 0.2), (1.0, REJECT_ALL)],
)
def test_rewards_may_be_below_0(budget: float, threshold: float) -> None:
    rewards = (-0.7, 0.1, 0.3)
    lengths = (10, 5, 5)
    decisions = tuple(Decision(r, True, n) for r, n in zip(rewards, lengths, strict=True))
    sweep = Sweep([Trajectory("q", 0, decisions, 0, 20, True)])
    assert sweep.largest_threshold(budget) == threshold


def test_neighbouring_rewards_are_told_apart() -> None:
    rewards = (0.9998731, 0.9998732)
    decisions = tuple(Decision(reward, True, 1) for reward in rewards)
    found = Sweep([Trajectory("q", 0, decisions, 0, 2, True)]).largest_threshold(0.5)
    assert rewards[0] < found < rewards[1]


RECORD = Record(
    question=Question("q", "?", "7", "file"),
    method="rsd",
    settings={"threshold": 0.5},
    seed=0,
    text="",
    found="7",
    correct=True,
    finish_reason="stop",
    counts=Counts(draft_tokens=3, target_tokens=4, discarded_tokens=9),
    seconds=1.0,
    steps=(
        StepRecord("kept.", "draft", 0.75),
        StepRecord("rewritten", "target", None, ScoredText("no", 0.25)),
        StepRecord("again", "target", None, ScoredText("no", None)),
        StepRecord("nobody scored it", "draft", None),
    ),
)


def test_a_record_becomes_a_trajectory() -> None:
    decisions = (
        Decision(0.75, True, 5),
        Decision(0.25, False, 9),
        Decision(-float("inf"), False, 5),
    )
    assert trajectory(RECORD) == Trajectory("q", 0, decisions, 4, 7, True)


@pytest.mark.parametrize(
    "record",
    [
        replace(RECORD, method="rsd:clip", settings={"policy": "clip"}),
        replace(RECORD, method="gsi@1", settings={"candidates": 1, "threshold": 10.0}),
        replace(RECORD, method="target", settings={}),
    ],
)
def test_other_methods_tell_nothing(record: Record) -> None:
    with pytest.raises(
        ValueError, match="records must be of rsd at a threshold, got '(rsd|gsi|target)"
    ):
        trajectory(record)


def test_seeds_are_answers_of_their_own() -> None:
    """An answer with another seed has other steps: it does not tell what this one would do."""
    kept, rejected = Decision(0.6, True, 8), Decision(0.4, False, 8)
    answers = [
        Trajectory("q", 0, (kept,), 0, 10, True),
        Trajectory("q", 1, (rejected,), 10, 10, True),
    ]
    sweep = Sweep(answers)
    assert sweep.at(0.5).share == 0.5
    assert sweep.unknown(0.7) == ["q"]


def test_the_interval_of_a_ratio() -> None:
    """As wide as the delta method says, for many pairs; nothing is known from one."""
    rng = random.Random(0)
    wholes = [rng.uniform(5, 15) for _ in range(400)]
    parts = [whole * min(max(rng.gauss(0.4, 0.15), 0), 1) for whole in wholes]
    ratio = sum(parts) / sum(wholes)
    left = [part - ratio * whole for part, whole in zip(parts, wholes, strict=True)]
    deviation = sum(value * value for value in left) ** 0.5 / sum(wholes)
    low, high = ratio_interval(parts, wholes)
    assert low == pytest.approx(ratio - 1.96 * deviation, abs=0.1 * deviation)
    assert high == pytest.approx(ratio + 1.96 * deviation, abs=0.1 * deviation)
    assert ratio_interval(parts, wholes) == (low, high)
    assert ratio_interval([1.0], [2.0]) == (0.0, 1.0)
