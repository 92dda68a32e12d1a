"""Which of several answers to a question is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rsd_engine.steps.selection import best

Same = Callable[[str, str], bool]
Aggregate = Callable[[Sequence[float]], float]

AGGREGATES: Mapping[str, Aggregate] = {
    "last": lambda rewards: rewards[-1],
    "mean": lambda rewards: math.fsum(rewards) / len(rewards),
    "min": min,
    "product": math.prod,
}
"""From the rewards of a solution's steps, at least one, to that of the solution."""


@dataclass(frozen=True)
class Given:
    """One of several answers.

    Attributes:
        found: the answer extracted from its text; None if there is none.
        rewards: of its steps that were scored.
    """

    found: str | None
    rewards: tuple[float, ...] = ()


Choose = Callable[[Sequence[Given], Same], int]
"""From the answers, at least one, and what tells which are the same, to the index of one."""


def majority(answers: Sequence[Given], same: Same) -> int:
    """The first of the answers that most agree with; of equal groups the one that began first.

    Answers without a result do not vote. If none has one, it is the first.
    """
    groups: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer.found is None:
            continue
        for group in groups:
            first = answers[group[0]].found
            assert first is not None
            if same(answer.found, first):
                group.append(index)
                break
        else:
            groups.append([index])
    return max(groups, key=len)[0] if groups else 0


def best_of(aggregate: str) -> Choose:
    """The answer with the highest reward, of equal ones the first."""

    def choose(answers: Sequence[Given], same: Same) -> int:
        return best([solution_reward(aggregate, answer.rewards) for answer in answers])

    return choose


def solution_reward(aggregate: str, rewards: Sequence[float]) -> float:
    """The reward of a solution from those of its steps; NaN if there are none."""
    return AGGREGATES[aggregate](rewards) if rewards else math.nan
