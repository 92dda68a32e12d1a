"""Notices rewards that decide nothing: always NaN, or never enough to keep a step."""

from __future__ import annotations

import logging

from rsd_engine.outputs import Metrics

logger = logging.getLogger("rsd_engine")

MIN_SCORED = 32
"""Scored steps before anything is said: fewer may be rejected by chance."""


def reward_problem(metrics: Metrics) -> str | None:
    """What is odd about the rewards of all steps that were scored, and what to check.

    Args:
        metrics: of one engine or one run.

    Returns:
        None if nothing is odd, or too few steps were scored to say.
    """
    scored = metrics.steps_accepted + metrics.steps_rejected
    if scored < MIN_SCORED:
        return None
    given = scored + metrics.candidates.lost
    if 2 * metrics.nan_rewards >= given:
        return (
            f"{metrics.nan_rewards} of {given} rewards are NaN, which rejects a step: check that "
            "the PRM's checkpoint is whole, and try dtype float32"
        )
    if not metrics.steps_accepted:
        return (
            f"none of {scored} draft steps was accepted, so drafts and rewards only cost time: "
            "look at the rewards of some steps, then check that the threshold suits them "
            "(`rsd tune` finds one), and that a PRM fits these prompts and steps (its prompt "
            "format, step_delimiters)"
        )
    return None


class RewardWatch:
    """Says once in the log of an engine that its rewards decide nothing."""

    def __init__(self) -> None:
        self._said = False

    def look(self, metrics: Metrics) -> None:
        """Looks at the sums over all finished requests of the engine."""
        if self._said:
            return
        problem = reward_problem(metrics)
        if problem is not None:
            self._said = True
            logger.warning("%s", problem)
