"""The story families behind the demo problems.

Each family tells a story sentence by sentence, and writes the steps that follow from a sentence
along with it. So the derivation is known by construction, in one canonical order, and a step can be
checked exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from rsd_engine.demo import words

T = TypeVar("T")

LIMIT = 99  # arithmetic of two digits is within reach of a model of half a million weights


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options; it uses random() alone, which is the same in every Python version."""
    return options[int(rng.random() * len(options))]


def between(rng: random.Random, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def sample(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    """Different options in random order."""
    pool = list(options)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]


def compute(left: int, op: str, right: int) -> int | None:
    """The value of one equation, or None if it is not an integer from 2 to LIMIT."""
    if op == "/":
        value = left // right if right and left % right == 0 else 0
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[op]
    return value if 2 <= value <= LIMIT else None


class Unusable(Exception):
    """The numbers drawn make no story; the caller draws again."""


class Story:
    """A problem while it is told: its sentences, its steps and the last value."""

    def __init__(self, rng: random.Random, steps_wanted: int) -> None:
        self.rng = rng
        self.wanted = steps_wanted
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.question = ""
        self.value = 0
        self.cast = sample(rng, words.NAMES, len(words.NAMES))

    @property
    def left(self) -> int:
        """Steps still to be told."""
        return self.wanted - len(self.steps)

    def say(self, *versions: str) -> None:
        """Adds a sentence, in one of its wordings."""
        self.sentences.append(pick(self.rng, versions))

    def ask(self, *versions: str) -> None:
        """Sets the question, in one of its wordings."""
        self.question = pick(self.rng, versions)

    def work(self, wording: str, left: int, op: str, right: int) -> int:
        """Adds a step; `{}` in its wording stands for the equation."""
        value = compute(left, op, right)
        if value is None:
            raise Unusable
        self.steps.append(wording.replace("{}", f"{left} {op} {right} = {value}"))
        self.value = value
        return value


def change(rng: random.Random, value: int, spread: int = 20) -> tuple[str, int]:
    """An operation after which the value is still from 2 to LIMIT."""
    options: list[tuple[str, int]] = []
    if value + 2 <= LIMIT:
        options += [("+", between(rng, 2, min(spread, LIMIT - value)))] * 3
    if value >= 6:
        options += [("-", between(rng, 2, min(spread, value - 3)))] * 3
    options += [("*", 2)] * 2 if value <= 40 else []
    options += [("*", 3)] if value <= 24 else []
    options += [("/", 2)] * (1 if value < 40 else 3) if value % 2 == 0 and value >= 8 else []
    return pick(rng, options)


def compare(rng: random.Random, op: str, amount: int, more: str, fewer: str) -> tuple[str, str]:
    """A comparison of two quantities: the words before and after the thing counted."""
    if op == "+":
        return f"{amount} {more}", "than"
    if op == "-":
        return f"{amount} {fewer}", "than"
    factor = {("*", 2): "twice", ("*", 3): pick(rng, ("three times", "3 times"))}
    return f"{factor.get((op, amount), 'half')} as many", "as"


def people(story: Story) -> None:
    """A chain of people, each compared with the one before."""
    rng, cast = story.rng, story.cast
    deed = pick(rng, words.DEEDS)
    things = pick(rng, deed.things)
    ending = pick(rng, ("one", "together", "more"))
    relations = story.wanted - (ending != "one")
    values = [between(rng, 4, 40)]
    story.say(f"{cast[0]} {deed.does} {values[0]} {things}.")
    for i in range(1, relations + 1):
        who, last = cast[i], cast[i - 1]
        if i >= 2 and values[-1] + values[-2] <= 60 and rng.random() < 0.2:
            op, amount = "+", values[-2]
            story.say(
                f"{who} {deed.does} as many {things} as {last} and {cast[i - 2]} together.",
                f"{who} {deed.does} as many {things} as {last} and {cast[i - 2]} combined.",
            )
        else:
            op, amount = change(rng, values[-1])
            before, after = compare(rng, op, amount, "more", "fewer")
            story.say(
                f"{who} {deed.does} {before} {things} {after} {last}.",
                f"Compared with {last}, {who} {deed.does} {before} {things}."
                if after == "than"
                else f"{who} {deed.does} {before} {things} {after} {last} does.",
            )
        values.append(story.work(f"{who} {deed.does} {{}} {things}.", values[-1], op, amount))
    first, second = cast[relations], cast[relations - 1]
    if ending == "one":
        story.ask(f"How many {things} does {first} {deed.do}?")
    elif ending == "together":
        story.ask(
            f"How many {things} do {first} and {second} {deed.do} together?",
            f"How many {things} do {first} and {second} {deed.do} in total?",
        )
        story.work(f"Together they {deed.do} {{}} {things}.", values[-1], "+", values[-2])
    else:
        _ask_gap(story, deed, things, (first, values[-1]), (second, values[-2]))


def _ask_gap(
    story: Story,
    deed: words.Deed,
    things: str,
    one: tuple[str, int],
    other: tuple[str, int],
) -> None:
    """Ends with the difference between the last two people."""
    (high, more), (low, fewer) = sorted((one, other), key=lambda pair: -pair[1])
    story.ask(
        f"How many more {things} does {high} {deed.do} than {low}?",
        f"How many fewer {things} does {low} {deed.do} than {high}?",
    )
    story.work(f"The difference is {{}} {things}.", more, "-", fewer)


def ages(story: Story) -> None:
    """A family whose ages follow from one another."""
    rng, cast = story.rng, story.cast
    later = rng.random() < 0.5
    value = between(rng, 4, 30)
    story.say(f"{cast[0]} is {value} years old.", f"{cast[0]} turned {value} years old today.")
    for i in range(1, story.wanted - later + 1):
        who, last = cast[i], cast[i - 1]
        op, amount = change(rng, value, 15)
        if op in "+-":
            word = "older" if op == "+" else "younger"
            story.say(f"{who} is {amount} years {word} than {last}.")
        else:
            factor = "half" if op == "/" else "twice" if amount == 2 else "three times"
            story.say(f"{who} is {factor} as old as {last}.")
        value = story.work(f"{who} is {{}} years old.", value, op, amount)
    who = cast[story.wanted - later]
    if later:
        years = between(rng, 2, 12)
        story.ask(f"How old will {who} be in {years} years?")
        story.work(f"In {years} years {who} will be {{}} years old.", value, "+", years)
    else:
        story.ask(f"How old is {who}?", f"What is the age of {who}?")


def days(story: Story) -> None:
    """One person's count from day to day, with or without a running total."""
    rng, who = story.rng, story.cast[0]
    deed = pick(rng, [deed for deed in words.DEEDS if deed.does != "has"])
    things = pick(rng, deed.things)
    start = between(rng, 0, 6)
    total = count = between(rng, 3, 20)
    running = story.wanted % 2 == 0 and rng.random() < 0.6
    if not running and story.wanted > 6:
        raise Unusable  # a week has no eighth day to compare
    name = words.DAYS[start % 7]
    story.say(
        f"On {name}, {who} {deed.does} {count} {things}.",
        f"{who} {deed.does} {count} {things} on {name}.",
    )
    for i in range(1, (story.wanted // 2 if running else story.wanted) + 1):
        last, name = name, words.DAYS[(start + i) % 7]
        op, amount = change(rng, count, 10)
        before, after = compare(rng, op, amount, "more", "fewer")
        story.say(
            f"On {name}, {who} {deed.does} {before} {things} {after} on {last}.",
            f"{who} {deed.does} {before} {things} on {name} {after} on {last}.",
        )
        count = story.work(f"On {name}, {who} {deed.does} {{}} {things}.", count, op, amount)
        if running:
            total = story.work(f"By {name}, the total is {{}} {things}.", total, "+", count)
    if running:
        story.ask(
            f"How many {things} does {who} {deed.do} in all?",
            f"How many {things} does {who} {deed.do} over these days in total?",
        )
    else:
        story.ask(f"How many {things} does {who} {deed.do} on {name}?")
