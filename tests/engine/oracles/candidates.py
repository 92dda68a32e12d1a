"""Several candidates for a step, as one would write it at first: by text, one after the other.

Every candidate is written alone, after a full forward of transformers for each token, and scored by
a full forward of the PRM over the text so far; the choice is a few lines of Python. Only the random
words are the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch

from rsd_engine.steps.policies import Policy
from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.state.enums import Purpose, Role
from tests.draw_oracle import Place, gumbels
from tests.engine.oracles.naive import NaiveModels, greedy, reward_of, text_of, write_step

CANDIDATE_SHIFT = 16  # bits of a sample's index below the number of the candidate


@dataclass(frozen=True)
class Asked:
    """One sample of a request."""

    prompt: tuple[int, ...]
    question: str
    policy: Policy
    max_tokens: int
    candidates: int
    seed: int = 5
    sample: int = 0
    temperature: float = 0.0


@dataclass(frozen=True)
class Scored:
    """A step and its reward, whatever became of it."""

    text: str
    reward: float
    score: float | None = None  # by which GSI drew it


@dataclass(frozen=True)
class ChosenStep:
    """A kept step, what the target wrote it in place of, and the candidates that lost."""

    text: str
    source: str
    reward: float | None  # None: written by the target and not scored
    rejected: Scored | None
    lost: tuple[Scored, ...]


@dataclass(frozen=True)
class Solution:
    """A prompt with the steps kept so far."""

    ids: tuple[int, ...]
    steps: tuple[ChosenStep, ...] = ()
    reward: float = -math.inf  # of the last step


@dataclass(frozen=True)
class Candidate:
    """A step that somebody wrote after a solution; `index` is part of the key of its draws."""

    after: Solution
    index: int
    writer: str
    ids: tuple[int, ...]
    text: str
    reward: float

    @property
    def scored(self) -> Scored:
        return Scored(self.text, self.reward)


Select = Callable[["Naive", Sequence[Candidate]], Candidate]


class Naive:
    """One sample, from its prompt to its end, by one of three algorithms."""

    def __init__(self, models: NaiveModels, asked: Asked) -> None:
        self._models, self._asked = models, asked
        self._every = range(asked.candidates)

    @torch.no_grad()
    def select(self, select: Select) -> Solution:
        """Of a step's drafts one is selected, and the policy decides on it."""
        solution = Solution(self._asked.prompt)
        while not self._ended(solution):
            drafts = [self._write("draft", solution, i) for i in self._every]
            picked = select(self, drafts)
            lost = _others(drafts, picked)
            if self._accepts(picked, 0):
                solution = _kept(picked, lost)
            else:
                rewritten = self._write("target", solution, 0)
                solution = _kept(rewritten, lost, picked.scored, scored=False)
        return solution

    @torch.no_grad()
    def tilt(self, beta: float, threshold: float) -> Solution:
        """GSI (Geuter et al., 2025): reward tilted by the likelihood ratio, or the target's own."""
        solution = Solution(self._asked.prompt)
        while not self._ended(solution):
            drafts = [self._write("draft", solution, i) for i in self._every]
            scores = [
                beta * c.reward + self._logprob("target", c) - self._logprob("draft", c)
                for c in drafts
            ]
            picked = self.drawn(drafts, scores, Purpose.CHOOSE_DRAFT)
            lost = _others(drafts, picked, scores)
            if scores[picked.index] > threshold:
                solution = _kept(picked, lost)
                continue
            written = [self._write("target", solution, i) for i in self._every]
            best = self.drawn(written, [beta * c.reward for c in written], Purpose.CHOOSE_TARGET)
            solution = _kept(best, lost + _others(written, best), picked.scored)
        return solution

    @torch.no_grad()
    def beams(self, width: int) -> Solution:
        """Step beam search: the best solution of those that are left when all have ended."""
        asked = self._asked
        beams = [Solution(asked.prompt)] * width
        while going := [beam for beam in beams if not self._ended(beam)]:
            drafts = [
                self._write("draft", beam, k * asked.candidates + i)
                for k, beam in enumerate(going)
                for i in self._every
            ]
            found = [beam for beam in beams if self._ended(beam)] + drafts
            kept = sorted(found, key=lambda one: -one.reward)[:width]  # stable: first of equals
            lost = [draft for draft in drafts if not any(draft is one for one in kept)]
            beams = [self._grown(one, lost) if isinstance(one, Candidate) else one for one in kept]
        return max(beams, key=lambda beam: beam.reward)

    def _grown(self, draft: Candidate, lost: Sequence[Candidate]) -> Solution:
        """A beam with its draft, or with what the target, scored as well, puts in its place."""
        of_beam = tuple(one.scored for one in lost if one.after is draft.after)
        if self._accepts(draft, draft.index):
            return _kept(draft, of_beam)
        return _kept(self._write("target", draft.after, draft.index), of_beam, draft.scored)

    def drawn(
        self, candidates: Sequence[Candidate], scores: Sequence[float], purpose: Purpose
    ) -> Candidate:
        """One by the softmax of the scores: the inverse of its cumulative distribution."""
        after = candidates[0].after
        u = _uniform(self._place(after, len(after.ids), purpose, 0))
        weights = [math.exp(score - max(scores)) for score in scores]
        below = 0.0
        for candidate, weight in zip(candidates, weights, strict=True):
            below += weight / sum(weights)
            if u < below:
                return candidate
        return candidates[-1]

    def _accepts(self, draft: Candidate, index: int) -> bool:
        after = draft.after
        place = self._place(after, len(after.ids) + len(draft.ids), Purpose.ACCEPT, index)
        return _uniform(place) < self._asked.policy.weight(draft.reward)

    def _ended(self, solution: Solution) -> bool:
        written = len(solution.ids) - len(self._asked.prompt)
        return bool(written) and (
            written >= self._asked.max_tokens
            or solution.ids[-1] == self._models.tokenizer.eos_token_id
        )

    def _write(self, writer: str, after: Solution, index: int) -> Candidate:
        """A step of "draft" or "target", remembered by all that it depends on."""
        models, asked, begin = self._models, self._asked, len(after.ids)
        room = len(asked.prompt) + asked.max_tokens - begin
        place = self._place(after, begin, Purpose.token_of(Role[writer.upper()]), index)

        def choose(logits: torch.Tensor, written: int) -> int:
            if not asked.temperature:
                return greedy(logits, written)
            noise = gumbels(replace(place, position=begin + written), len(logits))
            return int((logits.double().numpy() / asked.temperature + noise).argmax())

        draws = (asked.temperature, place) if asked.temperature else ()
        key = (writer, room, after.ids, *draws)
        if key not in models.steps:
            model = getattr(models, writer)
            models.steps[key] = write_step(model, models.tokenizer, [*after.ids], room, choose)
        ids = tuple(models.steps[key])
        text = text_of(models.tokenizer, [*ids])
        reward = reward_of(models, asked.question, [*(s.text for s in after.steps), text])
        return Candidate(after, index, writer, ids, text, reward)

    def _place(self, after: Solution, position: int, purpose: Purpose, index: int) -> Place:
        sample = self._asked.sample | index << CANDIDATE_SHIFT
        return Place(self._asked.seed, sample, len(after.steps), position, purpose)

    def _logprob(self, writer: str, candidate: Candidate) -> float:
        """Of the whole step, before temperature."""
        ids, begin = [*candidate.after.ids, *candidate.ids], len(candidate.after.ids)
        logits = getattr(self._models, writer)(torch.tensor([ids])).logits[0, begin - 1 : -1]
        logprobs = logits[:, : len(self._models.tokenizer)].double().log_softmax(-1)
        return float(logprobs.gather(1, torch.tensor(ids[begin:])[:, None]).sum())


def best(_: Naive, candidates: Sequence[Candidate]) -> Candidate:
    """The highest reward, of equals the first."""
    return max(candidates, key=lambda candidate: candidate.reward)


def softmax(beta: float) -> Select:
    """By the softmax of beta * reward."""

    def select(naive: Naive, candidates: Sequence[Candidate]) -> Candidate:
        scores = [beta * candidate.reward for candidate in candidates]
        return naive.drawn(candidates, scores, Purpose.CHOOSE_DRAFT)

    return select


def _uniform(place: Place) -> float:
    return uniform(DrawKey(*astuple(place)))


def _others(
    candidates: Sequence[Candidate], winner: Candidate, scores: Sequence[float] | None = None
) -> tuple[Scored, ...]:
    each: Sequence[float | None] = scores or [None] * len(candidates)
    return tuple(
        Scored(one.text, one.reward, score)
        for one, score in zip(candidates, each, strict=True)
        if one is not winner
    )


def _kept(
    step: Candidate,
    lost: tuple[Scored, ...],
    rejected: Scored | None = None,
    *,
    scored: bool = True,
) -> Solution:
    reward = step.reward if scored else None
    chosen = ChosenStep(step.text, step.writer, reward, rejected, lost)
    after = step.after
    return Solution((*after.ids, *step.ids), (*after.steps, chosen), step.reward)
