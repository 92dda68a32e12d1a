"""How many guesses pay: the least time per token of the target's text.

With k guesses, each right with probability a, a pass of the target brings (1 - a^(k+1)) / (1 - a)
tokens in the mean (Leviathan et al., 2023, eq. 1). It takes the time of a pass, and k times that of
a pass of the draft and of one more row.
"""

from __future__ import annotations

MOST_GUESSES = 8  # of the draft at a time, where their number is left open
PASS_SHARE = 0.05  # of a target's pass: what any pass takes beside reading its weights
# What one more row adds to a target's pass, as a share of it: a CPU computes as slowly as it reads.
ROW_SHARES = {"cpu": 0.1, "cuda": 0.01}


def tokens_a_pass(guesses: int, acceptance: float) -> float:
    """Mean tokens of a target's pass that verifies so many guesses, each right so often.

    Raises:
        ValueError: `acceptance` is not in [0, 1].
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance is {acceptance}; it must be in [0, 1]")
    if acceptance == 1:
        return guesses + 1.0
    return float((1 - acceptance ** (guesses + 1)) / (1 - acceptance))


def best_guesses(acceptance: float, draft_share: float, row_share: float) -> int:
    """The number of guesses with the least time per token; 0 if none pay.

    Args:
        acceptance: share of the guesses that is right.
        draft_share: time of a draft's pass, as a share of a target's.
        row_share: time of one more row, likewise.
    """

    def cost(guesses: int) -> float:
        seconds = 1 + guesses * (draft_share + PASS_SHARE + row_share)
        return seconds / tokens_a_pass(guesses, acceptance)

    return min(range(MOST_GUESSES + 1), key=cost)


def guesses_at_rate(draft_share: float, *, row_share: float, steps: int) -> list[int]:
    """The same for acceptances of 0, 1 / steps, ..., 1."""
    return [best_guesses(step / steps, draft_share, row_share) for step in range(steps + 1)]
