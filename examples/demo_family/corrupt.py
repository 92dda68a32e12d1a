"""Wrong steps written on purpose, for the reward model to learn from.

Steps sampled from the draft and the target show the mistakes that matter; these show, in any
number, each kind of mistake by itself: a slip in the arithmetic, a wrong operand or operation, the
wrong person or thing, a step skipped or repeated, an early answer. The kinds have the weights that
they have among the mistakes of a small draft: lost carries and wrong days come first.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from rsd_engine.demo import words
from rsd_engine.demo.problems import Problem, check_step
from rsd_engine.demo.stories import between, compute, pick

_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
_ANSWER = re.compile(r"\{(\d+)\}")
_GROUPS = (
    words.NAMES,
    words.DAYS,
    tuple({*words.THINGS, *words.GOODS, *(t for deed in words.DEEDS for t in deed.things)}),
    tuple(many for _, many in words.BOXES) + tuple(maker.batches for maker in words.MAKERS),
    tuple(one for one, _ in words.BOXES),
)
_WORDS = {word: tuple(sorted(group)) for group in _GROUPS for word in group}


def corrupt(rng: random.Random, problem: Problem, index: int) -> str | None:
    """A wrong step in place of step `index`, or None if what was drawn happens to be right."""
    kinds: list[Callable[[random.Random, Problem, int], str]]
    if index == len(problem.steps) - 1:
        kinds = [_wrong_answer, _wrong_answer, _other_step, _invent]
    else:
        kinds = [
            *[_slip] * 4,
            *[_word] * 4,
            *[_operand] * 3,
            _operation,
            _other_step,
            *[_early] * 2,
        ]
    text = pick(rng, kinds)(rng, problem, index)
    return None if check_step(problem, index, text) else text


def commuted(rng: random.Random, text: str) -> str:
    """The same step; half of the time with the operands of its sum or product exchanged."""
    match = _EQUATION.search(text)
    if match is None or match[2] not in "+*" or rng.random() < 0.5:
        return text
    left, op, right, value = match.groups()
    return _EQUATION.sub(f"{right} {op} {left} = {value}", text)


def _numbers(rng: random.Random, problem: Problem, index: int) -> int:
    """A number that the solver has seen, in the question or in the steps so far."""
    seen = re.findall(r"\d+", problem.question)
    for step in problem.steps[: index + 1]:
        seen += re.findall(r"\d+", step)
    return int(pick(rng, seen))


def _near(rng: random.Random, number: int) -> int:
    shift = pick(rng, (10, 10, 10, 10, 10, 1, 2, 2, 20, between(rng, 1, 12)))
    shifted = number + pick(rng, (-shift, shift))
    return shifted if 0 < shifted < 200 else number + shift


def miscalculate(rng: random.Random, step: str) -> str:
    """A step whose result is a little off; a step without an equation is unchanged."""

    def spoil(match: re.Match[str]) -> str:
        left, op, right, value = match.groups()
        return f"{left} {op} {right} = {_near(rng, int(value))}"

    return _EQUATION.sub(spoil, step)


def _slip(rng: random.Random, problem: Problem, index: int) -> str:
    """The right equation with a wrong result."""

    def spoil(match: re.Match[str]) -> str:
        left, op, right, value = match.groups()
        near = rng.random() < 0.85
        wrong = _near(rng, int(value)) if near else _numbers(rng, problem, index)
        return f"{left} {op} {right} = {wrong}"

    return _EQUATION.sub(spoil, problem.steps[index])


def _solved(left: int, op: str, right: int) -> str:
    value = compute(left, op, right)
    if value is None:
        value = left // right if op == "/" and right else left * right if op == "*" else 1
    return f"{left} {op} {right} = {value}"


def _operand(rng: random.Random, problem: Problem, index: int) -> str:
    """A wrong operand; the equation itself is mostly computed correctly."""

    def spoil(match: re.Match[str]) -> str:
        operands = [int(match[1]), int(match[3])]
        side = int(rng.random() < 0.7)
        seen = rng.random() < 0.7
        operands[side] = _numbers(rng, problem, index) if seen else _near(rng, operands[side])
        if rng.random() < 0.7:
            return _solved(operands[0], match[2], operands[1])
        return f"{operands[0]} {match[2]} {operands[1]} = {match[4]}"

    return _EQUATION.sub(spoil, problem.steps[index])


def _operation(rng: random.Random, problem: Problem, index: int) -> str:
    """A wrong operation, computed correctly."""

    def spoil(match: re.Match[str]) -> str:
        left, right = int(match[1]), int(match[3])
        if match[2] in "*/" and rng.random() < 0.4:
            right = pick(rng, (2, 3, 4))
        if match[2] == "-" and rng.random() < 0.2:
            left, right = right, left
        return _solved(left, pick(rng, "+-*/"), right)

    return _EQUATION.sub(spoil, problem.steps[index])


def _word(rng: random.Random, problem: Problem, index: int) -> str:
    """Another person, day or thing, preferably one that the question mentions."""
    step = problem.steps[index]
    found = [word for word in re.findall(r"[A-Za-z]+", step) if word in _WORDS]
    if not found:
        return _slip(rng, problem, index)
    days = [word for word in found if word in words.DAYS]
    word = pick(rng, days if days and rng.random() < 0.6 else found)
    told = [other for other in _WORDS[word] if other in problem.question and other != word]
    other = pick(rng, told) if told and rng.random() < 0.8 else pick(rng, _WORDS[word])
    return re.sub(rf"\b{word}\b", other, step, count=1)


def _other_step(rng: random.Random, problem: Problem, index: int) -> str:
    """A step of the same solution, in the wrong place."""
    near = [i for i in (index - 1, index + 1, index + 1) if 0 <= i < len(problem.steps)]
    if rng.random() < 0.7:
        return problem.steps[pick(rng, near)]
    return pick(rng, problem.steps)


def _early(rng: random.Random, problem: Problem, index: int) -> str:
    """An answer before the last step."""
    reached = re.findall(r"= (\d+)", problem.steps[index - 1]) if index else []
    numbers = [*reached, *reached, str(problem.answer), str(_numbers(rng, problem, index))]
    return f"The answer is \\boxed{{{pick(rng, numbers)}}}."


def _wrong_answer(rng: random.Random, problem: Problem, index: int) -> str:
    near = rng.random() < 0.5
    wrong = _near(rng, problem.answer) if near else _numbers(rng, problem, index)
    return _ANSWER.sub(f"{{{wrong}}}", problem.steps[index])


def _invent(rng: random.Random, problem: Problem, index: int) -> str:
    """One more step in place of the answer."""
    last = problem.steps[index - 1]
    op = pick(rng, "+-*/")
    equation = _solved(problem.answer, op, between(rng, 2, 12))
    if rng.random() < 0.5:
        equation = _solved(problem.answer, op, _numbers(rng, problem, index))
    return _EQUATION.sub(equation, last)
