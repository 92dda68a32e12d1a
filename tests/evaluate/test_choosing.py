"""Majority and best-of-N against naive choices, from samples made by hand and recorded ones."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd_engine.evaluate.choosing import AGGREGATES, Given, best_of, majority, solution_reward
from rsd_engine.steps.selection import survivors

DATA = Path(__file__).parent / "data"
RECORDED = DATA / "best_of_8.json"
BEAMS = DATA / "beam_2.json"


def equal(one: str, other: str) -> bool:
    return one == other


def given(*found: str | None) -> list[Given]:
    return [Given(answer) for answer in found]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (["7"], 0),
        (["7", "8", "8"], 1),
        (["7", "8", "7", "8"], 0),  # equal groups: the one that began first
        ([None, None, "3"], 2),  # nothing does not vote
        (["1", None, None, None], 0),
        ([None, None], 0),
        (["1", "2", "3", "2", "3", "3"], 2),
    ],
)
def test_majority_of_answers_made_by_hand(found: list[str | None], chosen: int) -> None:
    assert majority(given(*found), equal) == chosen


def test_answers_that_mean_the_same_vote_together() -> None:
    def same(one: str, other: str) -> bool:
        return eval(one) == eval(other)

    assert majority(given("2", "1/2", "2.0", "0.5", "3/6"), same) == 1
    assert majority(given("2", "1/2", "2.0", "0.5", "3/6"), equal) == 0


@pytest.mark.parametrize("seed", range(20))
def test_majority_equals_counting(seed: int) -> None:
    rng = random.Random(seed)
    found = [rng.choice(["1", "2", "3", None]) for _ in range(9)]
    votes = Counter(answer for answer in found if answer is not None)
    # Counter keeps the order in which answers came, and so does most_common among equals.
    assert found[majority(given(*found), equal)] == votes.most_common(1)[0][0]


def test_aggregates() -> None:
    rewards = [0.9, 0.2, 0.5]
    found = {name: solution_reward(name, rewards) for name in AGGREGATES}
    assert found == pytest.approx({"last": 0.5, "mean": 1.6 / 3, "min": 0.2, "product": 0.09})
    assert all(math.isnan(solution_reward(name, [])) for name in AGGREGATES)


@pytest.mark.parametrize(
    ("aggregate", "chosen"), [("last", 1), ("mean", 0), ("min", 2), ("product", 2)]
)
def test_the_best_by_each_aggregate(aggregate: str, chosen: int) -> None:
    answers = [
        Given("a", (0.99, 0.99, 0.99, 0.99, 0.4, 0.5)),  # mean 0.81, min 0.4, product 0.19
        Given("b", (0.1, 0.9)),  # last 0.9
        Given("c", (0.5, 0.5)),  # min 0.5, product 0.25
        Given("d"),  # without a reward
    ]
    assert best_of(aggregate)(answers, equal) == chosen


def test_of_equal_rewards_the_first_is_best_and_nothing_is_worst() -> None:
    assert best_of("last")([Given("a"), Given("b", (0.0,)), Given("c", (0.0,))], equal) == 1
    assert best_of("last")([Given("a"), Given("b")], equal) == 0


def problems() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RECORDED.read_text())["problems"]
    assert len(found) == 16
    return found


def test_recorded_answers_are_chosen_as_a_direct_computation_does() -> None:
    right = {"majority": 0, "best": 0, "first": 0}
    for problem in problems():
        answers = [Given(found, (reward,)) for found, _, reward in problem["answers"]]
        texts = [found for found, _, _ in problem["answers"]]
        rewards = [reward for _, _, reward in problem["answers"]]
        counts = Counter(text for text in texts if text is not None)
        voted = majority(answers, equal)
        assert texts[voted] == counts.most_common(1)[0][0]
        for aggregate in AGGREGATES:  # of one reward, all are that reward
            assert best_of(aggregate)(answers, equal) == rewards.index(max(rewards))
        best = rewards.index(max(rewards))
        for name, index in (("majority", voted), ("best", best), ("first", 0)):
            right[name] += problem["answers"][index][1]
    assert right["best"] > right["first"]  # the recorded rewards are worth something


def levels() -> list[dict[str, Any]]:
    """Of recorded beam searches: the rewards of each candidate's steps, and which two were kept."""
    found: list[dict[str, Any]] = [
        level
        for problem in json.loads(BEAMS.read_text())["problems"]
        for level in problem["levels"]
    ]
    assert len(found) == 32
    return found


def test_recorded_beams_are_kept_by_the_mean_of_their_rewards() -> None:
    agreeing = dict.fromkeys(AGGREGATES, 0)
    for level in levels():
        for name in AGGREGATES:
            rewards = [solution_reward(name, steps) for steps in level["rewards"]]
            agreeing[name] += sorted(survivors(rewards, 2)) == level["kept"]
    assert agreeing["mean"] == len(levels())
    assert agreeing["last"] < len(levels()) and agreeing["min"] < len(levels())


@pytest.mark.parametrize(
    ("aggregate", "naive"),
    [
        ("last", lambda rewards: rewards[..., -1]),
        ("mean", lambda rewards: rewards.mean(-1)),
        ("min", lambda rewards: rewards.min(-1)),
        ("product", lambda rewards: rewards.prod(-1)),
    ],
)
def test_recorded_step_rewards_are_taken_together(aggregate: str, naive: Any) -> None:
    """The candidates of a level have equally many steps, so numpy takes them all at once."""
    for level in levels():
        wanted = naive(np.array(level["rewards"]))
        found = [solution_reward(aggregate, steps) for steps in level["rewards"]]
        assert found == pytest.approx(wanted.tolist(), rel=1e-12)
        answers = [Given(None, tuple(steps)) for steps in level["rewards"]]
        assert best_of(aggregate)(answers, equal) == int(wanted.argmax())
        order = np.argsort(-wanted, kind="stable")
        for width in range(1, len(answers) + 1):
            assert survivors(found, width) == order[:width].tolist()
