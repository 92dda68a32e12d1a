"""The gate of `bench.batching`: every rule must lead to the same steps, rewards and decisions.

Another rule puts other slots into a pass, and a product over another number of rows may sum in
another order. So a slot may diverge where two tokens are equally likely within rounding. Each
divergence is checked: a tie ends the comparison of this slot's tokens and rewards, anything else is
an error. Who wrote a step, its length and whether it was kept must agree to the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bench.lib.play import Played
from bench.lib.timing import Mismatch
from rsd_engine.core.events import StepDecided, TokenLogprobs

# Largest difference of logprobs at a tie, and of rewards of equal steps, that rounding explains.
TIES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.125}
BEST = 4  # logprobs reported with every token: more than the two that may tie


def require_same_steps(played: Mapping[str, Played], tie: float) -> int:
    """Compares every rule with the first.

    Args:
        played: runs of one scene with `BEST` logprobs, by rule.
        tie: largest difference of logprobs and of rewards that rounding explains.

    Returns:
        Number of slots, over all runs, that diverge at a tie.

    Raises:
        Mismatch: naming the rule and the first step that differs, other than at a tie.
    """
    (first, wanted), *others = played.items()
    ties = 0
    for name, found in others:
        for slot, steps in wanted.steps.items():
            what = f"slot {slot} by {name} and by {first}"
            ties += _diverges(steps, found.steps[slot], tie, what)
    return ties


def _diverges(
    ours: Sequence[StepDecided], theirs: Sequence[StepDecided], tie: float, what: str
) -> bool:
    """Whether two runs of a slot write different tokens after a tie."""
    if len(ours) != len(theirs):
        raise Mismatch(f"{what}: {len(ours)} steps and {len(theirs)}")
    diverged = False
    for at, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        if _shape(one) != _shape(two):
            raise Mismatch(f"{what}: step {at} is {_shape(one)} and {_shape(two)}")
        if diverged:
            continue
        if one.token_ids != two.token_ids:
            if not _is_tie(one, two, tie):
                raise Mismatch(f"{what}: step {at} is {one.token_ids} and {two.token_ids}")
            diverged = True
        elif abs(one.reward - two.reward) > tie:  # NaN, an unscored step, is no difference
            raise Mismatch(f"{what}: reward {at} is {one.reward} and {two.reward}")
    return diverged


def _shape(step: StepDecided) -> tuple[str, str, int]:
    return step.kind.name, step.source.name, len(step.token_ids)


def _is_tie(one: StepDecided, two: StepDecided, tie: float) -> bool:
    """Whether both runs found the first tokens that differ equally likely."""
    assert one.logprobs is not None and two.logprobs is not None
    pairs = zip(one.token_ids, two.token_ids, strict=True)
    at = next(i for i, (a, b) in enumerate(pairs) if a != b)
    left, right = one.token_ids[at], two.token_ids[at]
    return all(_gap(tokens[at], left, right) <= tie for tokens in (one.logprobs, two.logprobs))


def _gap(found: TokenLogprobs, left: int, right: int) -> float:
    if not {left, right} <= set(found.top):
        return float("inf")
    return abs(found.top[left] - found.top[right])
