"""How well rewards separate right steps from wrong ones, as the exact checker judges them.

A step can be judged if every step before it is right, since the checker then knows what may come
next. So a solution contributes its right steps up to the first wrong one, and that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scipy.stats import mannwhitneyu

from rsd_engine.demo.problems import Problem
from rsd_engine.evaluate.record import Record
from rsd_engine.evaluate.scored_steps import scored_steps


@dataclass
class JudgedSteps:
    """Scored steps with the checker's verdicts; a step that occurs in several runs counts once."""

    _verdicts: dict[tuple[str, str], tuple[float, bool]] = field(default_factory=dict)

    def add(self, problems: Sequence[Problem], records: Sequence[Record]) -> None:
        """Adds every scored step of the answers, kept or rejected, that can be judged."""
        for step in scored_steps(records, problems):
            if step.right is not None:
                self._verdicts[step.context] = (step.reward, step.right)

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
