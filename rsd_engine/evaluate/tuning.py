"""The threshold that keeps to a budget of target tokens, from answers whose rewards are known.

Liao et al. 2025 (RSD) show that of all policies whose share of the target is bounded, the one with
the highest expected reward keeps a step when its reward reaches a threshold, and that the largest
threshold that keeps to the bound is the best one. What is left to find is how the share of the
target grows with the threshold. That depends on the models, the PRM, the questions and the
decoding, and it is measured here.

An answer that was written at one threshold is, word for word, the answer at every other threshold
that would have decided on all of its steps alike. So it tells exactly what these cost. For the
others it tells what is expected if its steps stayed the same and only their writers changed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rsd_engine.evaluate.record import Record, StepRecord
from rsd_engine.evaluate.scored_steps import has_policy
from rsd_engine.evaluate.statistics import ratio_interval

KEEP_ALL, REJECT_ALL = 0.0, 1.1  # rewards are in [0, 1], those of some PRMs in [-1, 1]


@dataclass(frozen=True)
class Decision:
    """A step of an answer.

    Attributes:
        reward: of what the draft wrote in its place; minus infinity if the PRM gave none.
        kept: whether that was kept.
        length: of the step that stands there, in characters.
    """

    reward: float
    kept: bool
    length: int


@dataclass(frozen=True)
class Trajectory:
    """What an answer of RSD tells about thresholds.

    Attributes:
        question: id of its question.
        seed: that it was sampled with.
        decisions: on its steps, in order; steps that nobody scored are not among them.
        target_tokens, tokens: kept ones; those of all models.
    """

    question: str
    seed: int
    decisions: tuple[Decision, ...]
    target_tokens: int
    tokens: int
    correct: bool

    def changed(self, threshold: float) -> int:
        """How many decisions would be others; the answer stays the same if none would."""
        return sum((one.reward >= threshold) != one.kept for one in self.decisions)

    def expected_target_tokens(self, threshold: float) -> float:
        """The target's tokens, if each step had the same length whoever writes it."""
        if not self.changed(threshold):
            return self.target_tokens
        length = sum(one.length for one in self.decisions)
        moved = sum(
            one.length * ((one.reward < threshold) - (not one.kept)) for one in self.decisions
        )
        decided = self.tokens * moved / max(length, 1)
        return min(max(self.target_tokens + decided, 0.0), self.tokens)


@dataclass(frozen=True)
class Expected:
    """What a threshold costs.

    Attributes:
        share: of the kept tokens, those that the target writes.
        low, high: 95 % confidence interval of it, by bootstrap over the questions.
        acceptance: share of the draft's steps that are kept; NaN if there are none.
        known: share of the questions whose answer at this threshold is known, so that nothing is
            assumed about it.
        accuracy: share of right answers; None unless all are known.
    """

    threshold: float
    share: float
    low: float
    high: float
    acceptance: float
    known: float
    accuracy: float | None


def is_by_threshold(record: Record) -> bool:
    """Whether a threshold alone decided on the steps of an answer."""
    return has_policy(record) and "threshold" in record.settings


def trajectory(record: Record) -> Trajectory:
    """What the record of an answer with a threshold tells.

    Raises:
        ValueError: it was not decided by a threshold.
    """
    if not is_by_threshold(record):
        raise ValueError(
            f"records must be of rsd at a threshold, got {record.method!r} with "
            f"{dict(record.settings)}"
        )
    decisions = (_decision(step) for step in record.steps)
    return Trajectory(
        question=record.question.id,
        seed=record.seed,
        decisions=tuple(one for one in decisions if one is not None),
        target_tokens=record.counts.target_tokens,
        tokens=record.counts.draft_tokens + record.counts.target_tokens,
        correct=record.correct,
    )


def _decision(step: StepRecord) -> Decision | None:
    if step.rejected is not None:
        reward = step.rejected.reward
        return Decision(-math.inf if reward is None else reward, False, len(step.text))
    if step.source == "draft" and step.reward is not None:
        return Decision(step.reward, True, len(step.text))
    return None


class Sweep:
    """How the share of the target grows with the threshold, over some questions."""

    def __init__(self, answers: Iterable[Trajectory]) -> None:
        self._answers: dict[tuple[str, int], list[Trajectory]] = {}
        self.add(answers)

    def add(self, answers: Iterable[Trajectory]) -> None:
        """Takes more answers: to other questions, or to the same ones at other thresholds."""
        for one in answers:
            self._answers.setdefault((one.question, one.seed), []).append(one)

    def at(self, threshold: float) -> Expected:
        """What a threshold costs.

        Raises:
            ImportError: scipy is not installed.
        """
        nearest = self._nearest(threshold)
        target = [one.expected_target_tokens(threshold) for one in nearest]
        tokens = [float(one.tokens) for one in nearest]
        decisions = [decision for one in nearest for decision in one.decisions]
        kept = sum(decision.reward >= threshold for decision in decisions)
        unknown = len(self.unknown(threshold))
        low, high = ratio_interval(target, tokens)
        return Expected(
            threshold=threshold,
            share=_ratio(sum(target), sum(tokens)),
            low=low,
            high=high,
            acceptance=_ratio(kept, len(decisions)),
            known=1 - unknown / len(nearest),
            accuracy=None if unknown else sum(one.correct for one in nearest) / len(nearest),
        )

    def unknown(self, threshold: float) -> list[str]:
        """Ids of the questions whose answer at this threshold is not known."""
        return [one.question for one in self._nearest(threshold) if one.changed(threshold)]

    def largest_threshold(self, budget: float) -> float:
        """The largest threshold with at most this share of the target.

        It is one of those between two neighbouring rewards, which is all that can be told apart,
        and the roundest number there.

        Args:
            budget: in [0, 1].
        """
        candidates = self._candidates()
        found = bisect_right(candidates, budget, key=self._share)
        return candidates[max(found - 1, 0)]

    def _candidates(self) -> list[float]:
        rewards = sorted(
            {
                decision.reward
                for answers in self._answers.values()
                for one in answers
                for decision in one.decisions
                if decision.reward > -math.inf
            }
        )
        least = KEEP_ALL if not rewards or rewards[0] >= KEEP_ALL else -REJECT_ALL
        return [least, *(_round_between(low, high) for low, high in pairwise(rewards)), REJECT_ALL]

    def _share(self, threshold: float) -> float:
        nearest = self._nearest(threshold)
        target = sum(one.expected_target_tokens(threshold) for one in nearest)
        return _ratio(target, sum(one.tokens for one in nearest))

    def _nearest(self, threshold: float) -> list[Trajectory]:
        """For each question and seed the answer that a threshold changes least."""
        return [
            min(answers, key=lambda one: one.changed(threshold))
            for answers in self._answers.values()
        ]


Ask = Callable[[Sequence[str], float], Iterable[Trajectory]]
"""Answers questions, given by their ids, at a threshold."""


def find_threshold(
    ask: Ask, questions: Sequence[str], budget: float, start: float, passes: int
) -> tuple[float, Sweep]:
    """The largest threshold within a budget, and what it was found from.

    The first pass answers all questions at `start`. Each further one answers, at the best threshold
    so far, those whose answer there is not known yet, until there are none or the passes end.
    """
    sweep = Sweep(ask(questions, start))
    for _ in range(passes - 1):
        threshold = sweep.largest_threshold(budget)
        unknown = sweep.unknown(threshold)
        if not unknown:
            break
        sweep.add(ask(unknown, threshold))
    return sweep.largest_threshold(budget), sweep


def _round_between(low: float, high: float) -> float:
    """The middle of two numbers, with as few digits as lie strictly between them."""
    middle = (low + high) / 2
    for digits in range(1, 17):
        found = float(f"{middle:.{digits}g}")
        if low < found < high:
            return found
    return middle


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan
