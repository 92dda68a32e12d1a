"""The problems: deterministic, disjoint splits, an exact checker."""

from __future__ import annotations

import random
import re

import pytest

from examples.demo_family.corrupt import commuted, corrupt
from rsd_engine.demo.problems import (
    DELIMITER,
    check_answer,
    check_step,
    extract_answer,
    generate,
    split_of,
)

PROBLEMS = generate(5, "test", 400)
FIRST_TEST_PROBLEM = (
    "Julia starts the day with 36 toys. Julia sells half of the toys. By the next day, Julia "
    "has twice as many toys. Then Julia gets 4 jars of 3 toys each. Then Julia gives half of "
    "the toys to Lily. Nora borrows 18 toys from Julia. Then Julia doubles the number of "
    "toys. Julia also has 3 stamps at home. Then Julia finds 17 toys at the market. Julia "
    "also has 2 pencils at home. How many toys does Julia have now?"
)


def test_generation_is_deterministic_and_a_prefix_of_itself() -> None:
    assert generate(5, "test", 400) == PROBLEMS
    assert generate(5, "test", 40) == PROBLEMS[:40]
    assert generate(6, "test", 40) != PROBLEMS[:40]


def test_the_stream_is_pinned() -> None:
    # A changed first problem means every published number was measured on other problems.
    assert generate(0, "test", 1)[0].question == FIRST_TEST_PROBLEM


def test_splits_never_share_a_problem() -> None:
    seen = {
        split: {p.question for seed in range(3) for p in generate(seed, split, 500)}
        for split in ("train", "valid", "test")
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["valid"]
    assert not seen["valid"] & seen["test"]
    for split, questions in seen.items():
        assert all(split_of(question) == split for question in questions)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        generate(0, "dev", 1)  # type: ignore[arg-type]


def test_every_length_from_two_to_eight_steps_occurs() -> None:
    assert {problem.num_steps for problem in PROBLEMS} == set(range(2, 9))
    for problem in PROBLEMS:
        assert len(problem.steps) == problem.num_steps + 1
    assert {p.num_steps for p in generate(0, "test", 20, steps=(3, 4))} == {3, 4}


def test_problems_vary() -> None:
    assert len({problem.family for problem in PROBLEMS}) == 7
    shapes = {re.sub(r"\d+", "N", problem.question) for problem in PROBLEMS}
    assert len(shapes) > 390


def test_equations_hold_and_depend_on_each_other() -> None:
    for problem in PROBLEMS:
        seen = set(re.findall(r"\d+", problem.question)) | {"2", "3"}  # twice, half, three times
        dependent = False
        for step in problem.steps[:-1]:
            left, op, right, value = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)[0]
            assert {left, right} <= seen
            exact = {
                "+": int(left) + int(right),
                "-": int(left) - int(right),
                "*": int(left) * int(right),
                "/": int(left) // int(right),
            }[op]
            assert exact == int(value)
            assert op != "/" or int(left) % int(right) == 0
            dependent = dependent or step != problem.steps[0]
            seen.add(value)
        assert dependent
        assert int(value) == problem.answer


def test_the_checker_accepts_every_gold_solution() -> None:
    for problem in PROBLEMS:
        steps = problem.solution.split(DELIMITER)
        assert all(check_step(problem, index, step) for index, step in enumerate(steps))
        assert check_answer(problem, problem.solution)


def test_the_checker_accepts_exchanged_operands() -> None:
    rng = random.Random(0)
    exchanged = 0
    for problem in PROBLEMS:
        for index, step in enumerate(problem.steps):
            other = commuted(rng, step)
            exchanged += other != step
            assert check_step(problem, index, other)
    assert exchanged > 100


def test_the_checker_rejects_spoiled_steps() -> None:
    rng = random.Random(0)
    for problem in PROBLEMS:
        for index, step in enumerate(problem.steps):
            wrong = corrupt(rng, problem, index)
            assert wrong is None or not check_step(problem, index, wrong)
            number = re.findall(r"\d+", step)[-1]
            bumped = step[: step.rindex(number)] + str(int(number) + 1)
            bumped += step[step.rindex(number) + len(number) :]
            assert not check_step(problem, index, bumped)
        assert not check_step(problem, len(problem.steps), problem.steps[-1])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is \\boxed{12}.", 12),
        ("First \\boxed{1}, then \\boxed{ 1,204 }", 1204),
        ("\\boxed{-7}", -7),
        ("\\boxed{$30}", 30),
        ("The answer is 12.", None),
        ("\\boxed{x}", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, answer: int | None) -> None:
    assert extract_answer(text) == answer
