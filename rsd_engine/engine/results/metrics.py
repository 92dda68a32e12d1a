"""What one sample cost: tokens and FLOPs of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsd_engine.core.events import RequestDone, StepDecided
from rsd_engine.outputs import (
    Flops,
    GuessCounts,
    Guesses,
    Metrics,
    RejectedStep,
    RoleMetrics,
    Step,
    StepSource,
)
from rsd_kernels.state.enums import GuessSource, Role

SOURCES: dict[Role, StepSource] = {Role.DRAFT: "draft", Role.TARGET: "target"}


@dataclass(frozen=True)
class SampleCounts:
    """A closed sample, as far as it is counted."""

    steps: Sequence[Step]
    rejected: Sequence[RejectedStep]
    dropped: StepDecided | None  # the step without which it ended
    done: RequestDone

    def metrics(self, parameters: Mapping[Role, int]) -> Metrics:
        """All but how it ended; `parameters` of each model, for the FLOPs."""
        roles = {role: self._role_metrics(role) for role in self.done.counters}
        return Metrics(
            draft=roles.get(Role.DRAFT, RoleMetrics()),
            target=roles.get(Role.TARGET, RoleMetrics()),
            prm=roles.get(Role.PRM, RoleMetrics()),
            flops=self._flops(roles, parameters),
            steps_accepted=sum(step.reward is not None for step in self.steps),
            steps_rejected=len(self.rejected),
            nan_rewards=self.done.nan_rewards,
            guesses=self._guesses,
        )

    @property
    def _guesses(self) -> Guesses:
        counts = self.done.guesses
        return Guesses(
            **{source.name.lower(): counts.get(source, GuessCounts()) for source in GuessSource}
        )

    def _role_metrics(self, role: Role) -> RoleMetrics:
        counters = self.done.counters[role]
        discarded = self._rejected_tokens() if role == Role.DRAFT else 0
        if self.dropped and self.dropped.source == role:
            discarded += len(self.dropped.token_ids)
        return RoleMetrics(
            tokens_generated=self._kept_tokens(role),
            tokens_discarded=discarded,
            tokens_read=counters.tokens_read,
            cached_tokens=counters.cached_tokens,
            passes=counters.passes,
            seconds=counters.seconds,
        )

    def _flops(self, roles: Mapping[Role, RoleMetrics], parameters: Mapping[Role, int]) -> Flops:
        tokens = {role: m.tokens_generated + m.tokens_discarded for role, m in roles.items()}
        if Role.PRM in roles:
            tokens[Role.PRM] = self._scored_tokens()
        guesses = self._guesses
        if Role.DRAFT in roles:
            tokens[Role.DRAFT] += guesses.draft.made
        if Role.TARGET in roles:  # it computes those that it does not keep, too
            tokens[Role.TARGET] += guesses.made - guesses.kept
        return Flops(
            generated=sum(2 * parameters[role] * n for role, n in tokens.items()),
            all=sum(2 * parameters[role] * m.tokens_read for role, m in roles.items()),
        )

    def _kept_tokens(self, role: Role) -> int:
        source = SOURCES.get(role)
        return sum(len(step.token_ids) for step in self.steps if step.source == source)

    def _scored_tokens(self) -> int:
        scored = (step for step in self.steps if step.reward is not None)
        return sum(len(step.token_ids) for step in scored) + self._rejected_tokens()

    def _rejected_tokens(self) -> int:
        return sum(len(step.token_ids) for step in self.rejected)
