"""What one sample cost: tokens and FLOPs of each model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rsd_engine.core.events import LostCandidate, RequestDone, StepDecided
from rsd_engine.outputs import (
    Candidate,
    CandidateCounts,
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
    lost: Sequence[Candidate]  # for a step that was never written
    dropped: StepDecided | None  # the step without which it ended
    done: RequestDone
    has_candidates: bool = False  # for every step that is scored

    def metrics(self, parameters: Mapping[Role, int]) -> Metrics:
        """All but how it ended; `parameters` of each model, for the FLOPs."""
        roles = {role: self._role_metrics(role) for role in self.done.counters}
        return Metrics(
            draft=roles.get(Role.DRAFT, RoleMetrics()),
            target=roles.get(Role.TARGET, RoleMetrics()),
            prm=roles.get(Role.PRM, RoleMetrics()),
            flops=self._flops(roles, parameters),
            steps_accepted=sum(_is_accepted(step) for step in self.steps),
            steps_rejected=len(self.rejected),
            nan_rewards=self.done.nan_rewards,
            guesses=self._guesses,
            candidates=self._candidates,
        )

    @property
    def _guesses(self) -> Guesses:
        counts = self.done.guesses
        return Guesses(
            **{source.name.lower(): counts.get(source, GuessCounts()) for source in GuessSource}
        )

    @cached_property
    def _all_lost(self) -> Sequence[Candidate]:
        """Against steps of the output, and for the last one that was never written."""
        return [*(one for step in self.steps for one in step.candidates), *self.lost]

    def _lost_tokens(self, role: Role) -> int:
        """Tokens of candidates, those of beams that were given up included."""
        source = SOURCES.get(role)
        told = _tokens(one for one in self._all_lost if one.source == source)
        return told + _tokens(one for one in self.done.given_up if one.source == role)

    @property
    def _candidates(self) -> CandidateCounts:
        if not self.has_candidates:
            return CandidateCounts()
        taken = sum(map(_num_taken, self.steps)) + len({one.source for one in self.lost})
        lost = len(self._all_lost) + len(self.done.given_up)
        return CandidateCounts(lost + taken, taken, sum(map(self._lost_tokens, SOURCES)))

    def _role_metrics(self, role: Role) -> RoleMetrics:
        counters = self.done.counters[role]
        discarded = self._lost_tokens(role)
        discarded += self._rejected_tokens() if role == Role.DRAFT else 0
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
            tokens[Role.TARGET] += guesses.made - guesses.kept + self._weighed_tokens()
        return Flops(
            generated=sum(2 * parameters[role] * n for role, n in tokens.items()),
            all=sum(2 * parameters[role] * m.tokens_read for role, m in roles.items()),
        )

    def _kept_tokens(self, role: Role) -> int:
        source = SOURCES.get(role)
        return _tokens(step for step in self.steps if step.source == source)

    def _scored_tokens(self) -> int:
        scored = (step for step in self.steps if step.reward is not None)
        lost = sum(map(self._lost_tokens, SOURCES))
        return _tokens(scored) + self._rejected_tokens() + lost

    def _weighed_tokens(self) -> int:
        """Tokens of the draft's candidates among which the target's probabilities decided."""
        found = 0
        for step in self.steps:
            weighed = [one for one in step.candidates if one.score is not None]
            if weighed:
                found += _tokens([*weighed, step.rejected or step])
        return found

    def _rejected_tokens(self) -> int:
        return _tokens(self.rejected)


def _is_accepted(step: Step) -> bool:
    """Whether it is a step that the draft wrote and the policy kept."""
    return step.source == "draft" and step.reward is not None


def _num_taken(step: Step) -> int:
    """Candidates taken for it: one of the draft's, and of the target's where it wrote several."""
    raced = {one.source for one in step.candidates}
    return len(raced | {"draft"} if _is_accepted(step) or step.rejected else raced)


def _tokens(written: Iterable[Step | RejectedStep | Candidate | LostCandidate]) -> int:
    return sum(len(one.token_ids) for one in written)
