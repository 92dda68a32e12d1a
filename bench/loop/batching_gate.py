"""The gate of `bench.batching`: by every rule the same steps are written, scored and decided.

Another rule brings other slots into a pass, and a product over another number of rows may sum in
another order, so where two tokens are equal within rounding a slot may part. Each parting is looked
at: a tie ends the comparison of the slot's tokens, anything else is an error. Who wrote a step, how
long it is and whether it was kept must agree to the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bench.lib.scenes import Played
from bench.lib.timing import Mismatch
from rsd_engine.core.events import StepDecided, TokenLogprobs

# Logprobs of a tie, and rewards of equal steps, differ by no more than rounding: of 16 bits in
# weights and activations, or of 32.
TIES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.125}
BEST = 4  # logprobs that come with every token: more than the two that may be a tie


def require_same_steps(played: Mapping[str, Played], tie: float) -> int:
    """Compares every rule with the first.

    Args:
        played: runs of one scene with `BEST` logprobs, by rule.
        tie: largest difference of logprobs and of rewards that rounding explains.

    Returns:
        Slots of all runs that part at a tie.

    Raises:
        Mismatch: naming the rule and the first step that differs, other than at a tie.
    """
    (first, wanted), *others = played.items()
    ties = 0
    for name, found in others:
        for slot, steps in wanted.steps.items():
            what = f"slot {slot} by {name} and by {first}"
            ties += _parts(steps, found.steps[slot], tie, what)
    return ties


def _parts(
    ours: Sequence[StepDecided], theirs: Sequence[StepDecided], tie: float, what: str
) -> bool:
    """Whether two runs of a slot write other tokens from some tie on."""
    if len(ours) != len(theirs):
        raise Mismatch(f"{what}: {len(ours)} steps and {len(theirs)}")
    parted = False
    for at, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        if _shape(one) != _shape(two):
            raise Mismatch(f"{what}: step {at} is {_shape(one)} and {_shape(two)}")
        if parted:
            continue
        if one.token_ids != two.token_ids:
            if not _is_tie(one, two, tie):
                raise Mismatch(f"{what}: step {at} is {one.token_ids} and {two.token_ids}")
            parted = True
        elif abs(one.reward - two.reward) > tie:  # NaN, an unscored step, is no difference
            raise Mismatch(f"{what}: reward {at} is {one.reward} and {two.reward}")
    return parted


def _shape(step: StepDecided) -> tuple[str, str, int]:
    return step.kind.name, step.source.name, len(step.token_ids)


def _is_tie(one: StepDecided, two: StepDecided, tie: float) -> bool:
    """The first tokens that differ are, in both runs, among the best and equally good."""
    assert one.logprobs is not None and two.logprobs is not None
    pairs = zip(one.token_ids, two.token_ids, strict=True)
    at = next(i for i, (a, b) in enumerate(pairs) if a != b)
    left, right = one.token_ids[at], two.token_ids[at]
    return all(_gap(tokens[at], left, right) <= tie for tokens in (one.logprobs, two.logprobs))


def _gap(found: TokenLogprobs, left: int, right: int) -> float:
    if not {left, right} <= set(found.top):
        return float("inf")
    return abs(found.top[left] - found.top[right])
