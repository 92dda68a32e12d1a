"""Which of several candidates of a step is taken, as users write it, and how the choice is made.

The draft writes N candidates of each step, all of them are scored, and a selection takes one of
them, or with `Beam` several. It is made on the host, from the rewards of one group of candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rsd_engine.arguments import check_integer, shown
from rsd_engine.steps.text_form import Numbers, form_of, parse_form

__all__ = ["GSI", "Beam", "Best", "Selection", "Softmax"]

MAX_CANDIDATES = 64
_MAX_BETA = 1e6


@dataclass(frozen=True)
class Selection(Numbers):
    """One of the selections below."""


@dataclass(frozen=True)
class Best(Selection):
    """Take the candidate with the highest reward, of equal ones the first.

    The policy then keeps or rejects it, as it does with any step of the draft.
    """


@dataclass(frozen=True)
class Softmax(Selection):
    """Draw candidate i with probability softmax(beta * r)_i: 0 draws evenly, 1e6 nearly the best.

    The policy then keeps or rejects it, as it does with any step of the draft. With every step kept
    it is soft best-of-N, step by step.

    Raises:
        ValueError: `beta` is not in [0, 1e6].
    """

    beta: float

    def __post_init__(self) -> None:
        self._check("beta", 0.0, _MAX_BETA, "in [0, 1e6]")


@dataclass(frozen=True)
class GSI(Selection):
    """Guided speculative inference: draw as if the target had written the candidates.

    Candidate i has the score beta * r_i + log p_target(step_i) - log p_draft(step_i), and one is
    drawn with softmax of these. If its score is above `threshold` it is kept; otherwise the target
    writes N candidates, and of those one is drawn with softmax(beta * r) and kept. No policy
    decides.

    Source: "Guided Speculative Inference for Efficient Test-Time Alignment of LLMs", Geuter et al.,
    ICLR 2026 (arXiv 2506.04118), with the tilted score compared to the threshold.

    Args:
        beta: weight of the reward, in [0, 1e6].
        threshold: least score to keep; -inf never asks the target, inf always does.

    Raises:
        ValueError: an argument is not allowed.
    """

    beta: float = 20.0
    threshold: float = 10.0

    def __post_init__(self) -> None:
        self._check("beta", 0.0, _MAX_BETA, "in [0, 1e6]")
        self._check_bound("threshold")


@dataclass(frozen=True)
class Beam(Selection):
    """Step beam search: keep the `width` solutions whose last steps have the highest rewards.

    The prompt gets width x N candidates of its first step, then each beam N of its next one; of all
    candidates, and beams that have ended, the best `width` stay. The policy keeps or rejects the
    step of each; what the target writes in its place is scored, too. The output is the beam with
    the highest reward, when all have ended.

    Source: Snell et al. 2024 (arXiv 2408.03314), section 5.1, beam search against a PRM.

    Args:
        width: beams, from 1 to 64.

    Raises:
        ValueError: `width` is not allowed.
    """

    width: int

    def __post_init__(self) -> None:
        width = check_integer("width", self.width, 1, MAX_CANDIDATES)
        object.__setattr__(self, "width", width)


_SELECTIONS = {kind.__name__.lower(): kind for kind in Selection.__subclasses__()}
SELECTION_FORMS = ", ".join(map(form_of, _SELECTIONS.values()))
"""How each selection is written on a command line: `best, softmax:beta, ...`."""


def check_selection(value: object) -> None:
    """Raises ValueError unless `value` is a selection, not its class, a name or a number."""
    if type(value) not in _SELECTIONS.values():
        raise ValueError(
            "select must be one of rsd_engine's selections, such as Best() or Softmax(20.0), "
            f"got {shown(value)}"
        )


def parse_selection(text: str) -> Selection:
    """The selection written as `name` or `name:number[:number]`, as on a command line.

    Raises:
        ValueError: the name is unknown, a number is missing, too many or out of its range.
    """
    return parse_form("select", _SELECTIONS, text)


def slots_of(candidates: int, select: Selection | None) -> int:
    """Slots that a request needs at once, with so many candidates of a step."""
    return candidates * (select.width if isinstance(select, Beam) else 1)


def best(rewards: Sequence[float]) -> int:
    """The index of the highest reward, of equal ones the first; NaN counts as -inf."""
    return survivors(rewards, 1)[0]


def draw(scores: Sequence[float], u: float) -> int:
    """An index drawn from softmax(scores), by its inverse CDF in the order of the indices.

    Args:
        scores: one per candidate; NaN counts as -inf, and where all do it is the first.
        u: a random number in [0, 1).
    """
    ranked = [_ranked(score) for score in scores]
    top = max(ranked)
    if top == -math.inf:
        return 0
    # An infinite top: inf - inf is no number.
    sums = list(accumulate(1.0 if s == top else math.exp(s - top) for s in ranked))
    return next(i for i, total in enumerate(sums) if total > u * sums[-1])


def survivors(rewards: Sequence[float], width: int) -> list[int]:
    """The indices of the `width` highest rewards, or of all, the highest first.

    Of equal ones the lower index comes first; NaN counts as -inf.
    """
    return sorted(range(len(rewards)), key=lambda i: -_ranked(rewards[i]))[:width]


def _ranked(value: float) -> float:
    return -math.inf if math.isnan(value) else value
