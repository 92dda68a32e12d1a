"""What was proposed in place of tokens of the target, and what of it is in the outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rsd_engine.outputs import Metrics


@dataclass(frozen=True)
class Predictions:
    """Steps of the draft that were scored, and guesses that the target verified.

    A rejected step that comes back as a guess is proposed twice. `completion_tokens - accepted` is
    what the target had to write by itself.

    Attributes:
        rounds: scored steps, and passes of the target where anything was guessed.
        proposed: tokens of these steps, and guesses that the target read.
        accepted: those among them that are in the output.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0

    @classmethod
    def of(cls, metrics: Iterable[Metrics]) -> Predictions:
        """Of requests, each of which has its own metrics."""
        rounds = proposed = accepted = 0
        for m in metrics:
            steps = m.steps_accepted + m.steps_rejected
            if steps:  # otherwise the draft wrote alone
                proposed += m.draft.tokens_generated + m.draft.tokens_discarded
                accepted += m.draft.tokens_generated
            rounds += steps + (m.target.passes if m.guesses.made else 0)
            proposed += m.guesses.made
            accepted += m.guesses.kept
        return cls(rounds, proposed, accepted)
