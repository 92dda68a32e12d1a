"""How well rewards separate right steps from wrong ones, as the exact checker judges them.

A step can be judged if every step before it is right, since the checker then knows what may come
next. So a solution contributes its right steps up to the first wrong one, and that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scipy.stats import mannwhitneyu

from rsd_engine import CompletionOutput
from rsd_engine.demo.problems import DELIMITER, Problem, check_step


@dataclass
class JudgedSteps:
    """Scored steps with the checker's verdicts; a step that occurs in several runs counts once."""

    _verdicts: dict[tuple[str, tuple[str, ...]], tuple[float, bool]] = field(default_factory=dict)

    def add(self, problems: Sequence[Problem], completions: Sequence[CompletionOutput]) -> None:
        """Adds every scored step of a run, kept or rejected, that can be judged."""
        for problem, completion in zip(problems, completions, strict=True):
            for texts, reward in _scored(problem, completion):
                right = check_step(problem, len(texts) - 1, texts[-1])
                # The engine rejects a step whose reward is NaN, so NaN counts as the lowest score.
                score = -math.inf if math.isnan(reward) else reward
                self._verdicts[problem.question, texts] = (score, right)

    def __len__(self) -> int:
        return len(self._verdicts)

    @property
    def num_wrong(self) -> int:
        return sum(not right for _, right in self._verdicts.values())

    def auc(self) -> float | None:
        """The chance that a right step scores above a wrong one; None if there is only one kind."""
        return auc(*self._scores()) if 0 < self.num_wrong < len(self) else None

    def best_threshold(self) -> float:
        """See the function of this name."""
        return best_threshold(*self._scores())

    def _scores(self) -> tuple[list[float], list[float]]:
        """Of right steps, of wrong steps."""
        right = [score for score, verdict in self._verdicts.values() if verdict]
        wrong = [score for score, verdict in self._verdicts.values() if not verdict]
        return right, wrong


def best_threshold(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The score from which on a step is kept, with the greatest difference between the shares of
    right and of wrong steps that are (Youden's J).

    It lies half-way between the two scores that it separates.
    """
    scores = sorted({*right, *wrong})
    cuts = [(low + high) / 2 for low, high in pairwise(scores)] or scores

    def gain(cut: float) -> float:
        return _share_from(cut, right) - _share_from(cut, wrong)

    return max(cuts, key=gain)


def _share_from(cut: float, scores: Sequence[float]) -> float:
    return sum(score >= cut for score in scores) / max(1, len(scores))


def auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The chance that a score of `right` is above one of `wrong`; ties count half."""
    above = mannwhitneyu(right, wrong, method="asymptotic").statistic
    return float(above) / (len(right) * len(wrong))


def _scored(
    problem: Problem, completion: CompletionOutput
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yields (texts of the steps up to a scored one, its reward) while all before it are right."""
    before: tuple[str, ...] = ()
    for step in completion.steps:
        if step.rejected is not None:
            yield (*before, step.rejected.text.removesuffix(DELIMITER)), step.rejected.reward
        before = (*before, step.text.removesuffix(DELIMITER))
        if step.reward is not None:
            yield before, step.reward
        if not check_step(problem, len(before) - 1, before[-1]):
            return
