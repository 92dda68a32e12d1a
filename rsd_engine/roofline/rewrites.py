"""The least time of a rewrite whose tokens are guessed and verified.

The rejected step is the first guess: one pass of the target reads all of it, and what is right of
it, up to the first mistake, is written, with the token in place of the mistake. From there on the
draft guesses k tokens at a time, as in token-level speculation (Leviathan et al., ICML 2023), until
the step has its length. Guesses are right independently of one another, equally often.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_engine.roofline.rounds import (
    MAX_DRAFT_TOKENS,
    RoundSeconds,
    Setting,
    Triple,
    check_share,
    kept_rows,
    round_seconds,
)


@dataclass(frozen=True)
class GuessedRewrite:
    """A rewrite of one step, with the best number of guesses.

    Attributes:
        draft_tokens: that the draft guesses at a time; 0: the target goes on alone.
        target_passes: the mean number of the target's passes.
        tokens_a_pass: step length over these passes.
        seconds: the mean time, without the reading of kept steps in the first pass.
    """

    draft_tokens: int
    target_passes: float
    tokens_a_pass: float
    seconds: float


def passes_after(tokens: int, guesses: int, acceptance: float) -> list[float]:
    """Mean passes that write 0, 1, ..., `tokens` tokens, each verifying so many guesses.

    What a pass writes past the last token counts for nothing.
    """
    all_right = acceptance**guesses
    passes = [0.0]
    window = 0.0  # of `passes` before the last one: each `acceptance` times less than the next
    for left in range(1, tokens + 1):
        beyond = left - guesses - 1  # left if all guesses are right
        window = passes[left - 1] + acceptance * window
        window -= all_right * passes[beyond] if beyond >= 0 else 0.0
        later = all_right * passes[max(0, beyond)]
        passes.append(1 + (1 - acceptance) * window + later)
    return passes


def guessed_rewrite(
    triple: Triple, setting: Setting, acceptance: float, guess_acceptance: float
) -> GuessedRewrite:
    """The quickest rewrite of a step.

    Args:
        triple: the models.
        setting: device, slots, context and step length.
        acceptance: share of the draft's steps that are kept.
        guess_acceptance: share of the guessed tokens that are what the target writes.

    Raises:
        ValueError: a share is not in [0, 1].
    """
    check_share("acceptance", acceptance)
    check_share("guess_acceptance", guess_acceptance)
    length, kept = setting.step_tokens, kept_rows(setting, acceptance)
    first = setting.seconds(triple.target, kept + 1 + length, places=1 + length)
    first -= setting.seconds(triple.target, kept + 1) - setting.seconds(triple.target)
    draft = setting.seconds(triple.draft)

    def with_guesses(number: int) -> GuessedRewrite:
        left = passes_after(length, number, guess_acceptance)
        # After `right` guesses and the token in place of the next one; all right: nothing is left.
        later = sum(
            (1 - guess_acceptance) * guess_acceptance**right * left[length - right - 1]
            for right in range(length)
        )
        verify = setting.seconds(triple.target, 1 + number, places=1 + number)
        seconds = first + later * (number * draft + verify)
        return GuessedRewrite(number, 1 + later, length / (1 + later), seconds)

    return min(map(with_guesses, range(MAX_DRAFT_TOKENS + 1)), key=lambda found: found.seconds)


def guessed_round(
    triple: Triple, setting: Setting, acceptance: float, guess_acceptance: float
) -> RoundSeconds:
    """`round_seconds` with rewrites whose tokens are guessed; the arguments of `guessed_rewrite`.

    Where guesses do not pay, the target writes alone.
    """
    plain = round_seconds(triple, setting, acceptance)
    rewrite = guessed_rewrite(triple, setting, acceptance, guess_acceptance)
    rejected = 1 - acceptance
    return RoundSeconds(
        draft=plain.draft,
        score=plain.score,
        catch_up=plain.catch_up,
        rewrite=min(plain.rewrite, rejected * rewrite.seconds),
    )
