"""The gate of the comparison: two programs that run the same algorithm must give the same answers.

They sum in different orders, so they may diverge where two tokens, or a reward and the threshold,
are equal within rounding. Each divergence is checked: a tie is counted, anything else is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.compare.paper.arrangement import DELIMITER, Answer, KeptStep, PaperArrangement
from bench.compare.paper.writers import EagerWriter
from bench.lib.timing import Mismatch
from rsd_engine import CompletionOutput, Step

TIE = 1e-3  # of logits and of rewards, both fp32
REWARD_ERROR = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How two programs agree on the same questions.

    Attributes:
        answers: that were compared.
        ties: answers that diverge at a tie.
    """

    answers: int
    ties: int


def require_same_answers(
    ours: Sequence[CompletionOutput], theirs: Sequence[Answer], arrangement: PaperArrangement
) -> Agreement:
    """Compares kept texts, decisions, drafted texts and rewards, step by step.

    Raises:
        Mismatch: naming the first answer and step that differ other than at a tie.
    """
    if len(ours) != len(theirs):
        raise Mismatch(f"{len(ours)} answers of ours, {len(theirs)} of theirs")
    ties = 0
    for index, (completion, answer) in enumerate(zip(ours, theirs, strict=True)):
        mine = [as_kept_step(step) for step in completion.steps]
        at = _first_difference(mine, answer.steps)
        if at is None:
            continue
        if not _is_tie(mine, answer, at, arrangement):
            raise Mismatch(
                f"answer {index} differs at step {at}: ours {mine[at : at + 1]}, "
                f"theirs {answer.steps[at : at + 1]}"
            )
        ties += 1
    return Agreement(len(ours), ties)


def as_kept_step(step: Step) -> KeptStep:
    """A step of this engine in the form of the paper's arrangement."""
    text = step.text.removesuffix(DELIMITER)
    if step.rejected is not None:
        drafted = step.rejected.text.removesuffix(DELIMITER)
        return KeptStep(text, step.source, drafted, step.rejected.reward, len(step.token_ids))
    if step.reward is None:
        raise ValueError(f"step {step.text!r} has no reward; the gate needs answers of mode 'rsd'")
    return KeptStep(text, step.source, text, step.reward, len(step.token_ids))


def _first_difference(mine: Sequence[KeptStep], theirs: Sequence[KeptStep]) -> int | None:
    """The first step that differs; None if all are equal."""
    for at, (a, b) in enumerate(zip(mine, theirs, strict=False)):
        same = (a.text, a.source, a.drafted) == (b.text, b.source, b.drafted)
        if not same or abs(a.reward - b.reward) > REWARD_ERROR:
            return at
    return None if len(mine) == len(theirs) else min(len(mine), len(theirs))


def _is_tie(
    mine: Sequence[KeptStep], answer: Answer, at: int, arrangement: PaperArrangement
) -> bool:
    if at >= min(len(mine), len(answer.steps)):
        return False
    a, b = mine[at], answer.steps[at]
    before = answer.prompt + "".join(step.text + DELIMITER for step in answer.steps[:at])
    if a.drafted != b.drafted:
        return _gap(arrangement.draft, before, a.drafted, b.drafted) <= TIE
    if a.source != b.source:
        return all(abs(step.reward - arrangement.threshold) <= TIE for step in (a, b))
    if a.text != b.text:
        return _gap(arrangement.target, before, a.text, b.text) <= TIE
    return False  # the same text, another reward


@torch.inference_mode()
def _gap(writer: EagerWriter, before: str, left: str, right: str) -> float:
    """Difference of the logits of the first two tokens that differ, after their common prefix."""
    a, b = writer.encode([before + left + DELIMITER, before + right + DELIMITER])
    pairs = enumerate(zip(a, b, strict=False))
    at = next((i for i, (one, two) in pairs if one != two), None)
    if at is None:
        return float("inf")
    [logits] = writer.model(input_ids=torch.tensor([a[:at]]), logits_to_keep=1).logits[:, -1]
    return float((logits[a[at]] - logits[b[at]]).abs())
