"""Seeded grade-school word problems with an exact checker.

The demo models are trained on these problems and the effect of RSD is measured on them, so two
properties matter more than variety: train and test share no problem (the split is a hash of the
text), and a step is checked exactly, without a model.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import Literal, get_args

from rsd_engine.demo import words
from rsd_engine.demo.events import FAMILIES
from rsd_engine.demo.stories import Story, Unusable, between, pick

Split = Literal["train", "valid", "test"]

MIN_STEPS, MAX_STEPS = 2, 8
DELIMITER = "\n\n"  # between two steps of a solution

_BOXED = re.compile(r"\\boxed\{\s*\$?(-?\d[\d,]*)(?:\.0*)?\s*\}")
_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
_BUCKETS = {"test": range(0, 64), "valid": range(64, 96), "train": range(96, 256)}


@dataclass(frozen=True)
class Problem:
    """A question, its canonical solution step by step, and the answer, an integer."""

    question: str
    steps: tuple[str, ...]  # the last one states the answer
    answer: int
    num_steps: int  # dependent equations: the steps before the one that states the answer
    family: str

    @property
    def solution(self) -> str:
        """The steps as one text."""
        return DELIMITER.join(self.steps)


def split_of(question: str) -> Split:
    """The split a question belongs to, by a hash of its text."""
    bucket = hashlib.blake2b(question.encode(), digest_size=1).digest()[0]
    for name in get_args(Split):
        if bucket in _BUCKETS[name]:
            return name
    raise AssertionError("the buckets cover every byte")


def generate(
    seed: int,
    split: Split,
    num: int,
    steps: tuple[int, int] = (MIN_STEPS, MAX_STEPS),
) -> list[Problem]:
    """Problems of one split, all different; equal arguments give equal problems."""
    if split not in _BUCKETS:
        raise ValueError(f"split must be one of {', '.join(_BUCKETS)}, got {split!r}")
    rng = random.Random(seed)
    found: dict[str, Problem] = {}
    while len(found) < num:
        problem = _draw(rng, between(rng, *steps))
        if problem is not None and split_of(problem.question) == split:
            found.setdefault(problem.question, problem)
    return list(found.values())


def _draw(rng: random.Random, wanted: int) -> Problem | None:
    """One problem of any split, or None if the numbers drawn make none."""
    family = pick(rng, tuple(FAMILIES))
    for _ in range(30):
        story = Story(rng, wanted)
        try:
            FAMILIES[family](story)
        except Unusable:
            continue
        for _ in range(pick(rng, (0, 0, 1, 1, 2))):
            _distract(story, family)
        answer = story.value
        steps = (*story.steps, f"The answer is \\boxed{{{answer}}}.")
        question = " ".join([*story.sentences, story.question])
        return Problem(question, steps, answer, len(story.steps), family)
    return None


def _distract(story: Story, family: str) -> None:
    """Adds a sentence, with a number, that no step needs."""
    rng, stranger = story.rng, story.cast[-1 - int(story.rng.random() * 6)]
    who = story.cast[0]
    number = between(rng, 2, 30)
    place = pick(rng, words.PLACES)
    told = " ".join(story.sentences)
    goods = [goods for goods in words.GOODS + words.THINGS if goods not in told]
    options = [
        f"The {place} is {number} miles away.",
        f"{stranger} walks {number} minutes to the {place}.",
        f"{stranger} has {number} {pick(rng, goods)}.",
        f"There are {number} people at the {place}.",
    ]
    if family not in ("ages", "making"):
        options.append(f"{who} is {number} years old.")
        options.append(f"{who} also has {number} {pick(rng, goods)} at home.")
    story.sentences.insert(between(rng, 1, len(story.sentences)), pick(rng, options))


def check_step(problem: Problem, index: int, text: str) -> bool:
    """Whether `text` is the right step `index`, given that all earlier steps are right.

    Only the order of the two operands of a sum or a product may differ from the canonical step.
    """
    return index < len(problem.steps) and _canonical(text) == _canonical(problem.steps[index])


def check_answer(problem: Problem, text: str) -> bool:
    """Whether a solution ends with the right answer."""
    return extract_answer(text) == problem.answer


def extract_answer(text: str) -> int | None:
    """The integer in the last box of a solution, or None."""
    boxes = _BOXED.findall(text)
    return int(boxes[-1].replace(",", "")) if boxes else None


def _canonical(text: str) -> str:
    """A step with the operands of commutative equations in a fixed order."""

    def order(match: re.Match[str]) -> str:
        left, op, right, value = match.groups()
        if op in "+*" and int(left) < int(right):
            left, right = right, left
        return f"{left} {op} {right} = {value}"

    return _EQUATION.sub(order, text.strip())
