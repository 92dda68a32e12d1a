"""How many guesses pay: the least time per token of the target's text.

With k guesses, each right with probability a, a pass of the target brings (1 - a^(k+1)) / (1 - a)
tokens in the mean (Leviathan et al., 2023, eq. 1). It takes the time of a pass, and k times that of
a pass of the draft and of one more row.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_GUESSES = 8  # of the draft at a time, where their number is left open
# What any pass takes beside reading its weights, as bytes that could be read meanwhile.
_FIXED_BYTES = {"cpu": 2_000_000, "cuda": 100_000_000}
# What one more row adds to a target's pass, as a share of it: a CPU computes as slowly as it reads.
_ROW_SHARE = {"cpu": 0.1, "cuda": 0.01}


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


@dataclass(frozen=True)
class GuessCosts:
    """What a guess of the draft costs, as a share of a target's pass.

    Attributes:
        draft: a pass of the draft.
        row: one more row of the target's pass.
    """

    draft: float
    row: float

    @classmethod
    def of_weights(cls, draft_bytes: int, target_bytes: int, device_type: str) -> GuessCosts:
        """Of models with weights of so many bytes, on a "cpu" or on "cuda"."""
        fixed = _FIXED_BYTES[device_type]
        return cls((draft_bytes + fixed) / (target_bytes + fixed), _ROW_SHARE[device_type])


def best_guesses(acceptance: float, costs: GuessCosts) -> int:
    """The number of guesses with the least time per token; 0 if none pay.

    Args:
        acceptance: share of the guesses that is right.
        costs: of a guess.
    """

    def cost(guesses: int) -> float:
        seconds = 1 + guesses * (costs.draft + costs.row)
        return seconds / tokens_a_pass(guesses, acceptance)

    return min(range(MOST_GUESSES + 1), key=cost)


def guesses_at_rate(costs: GuessCosts, *, steps: int) -> list[int]:
    """The same for acceptances of 0, 1 / steps, ..., 1."""
    return [best_guesses(step / steps, costs) for step in range(steps + 1)]
