"""The candidates for the steps of one request: who writes them, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from rsd_engine.core.events import LostCandidate, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_engine.steps.selection import GSI, Beam, Best, Selection, best
from rsd_kernels.state.enums import Finish, RecordKind


class Stage(Enum):
    """What the slots of a request are at."""

    PROMPT = 1  # its prompt is being read
    DRAFTS = 2  # the draft writes candidates, and they are scored
    DECIDED = 3  # a choice was made, and the policy has accepted it or not
    REWRITES = 4  # the target writes steps that are scored, too


@dataclass(eq=False)
class Solution:
    """One that may become the output: the only one, or a beam."""

    slot: int
    told: list[StepDecided] = field(default_factory=list)  # of a beam; it may lose yet
    reward: float = math.nan  # of its last step; NaN if unscored
    lost: tuple[LostCandidate, ...] = ()  # to the step that is being decided
    finish: Finish = Finish.NONE

    def branch(self, slot: int) -> Solution:
        """The same with another step, which `slot` has written."""
        return Solution(slot, list(self.told))


@dataclass
class Candidates:
    """Of one request.

    Attributes:
        solutions: one, or as many beams as are kept; the most promising first.
        writers: slots that write a candidate, and the solution that each goes on from, in the order
            of the candidates.
        written: all that a beam search has written.
        output: the solution that a beam search ended with.
    """

    request: SlotRequest
    slots: tuple[int, ...]
    stage: Stage = Stage.PROMPT
    solutions: list[Solution] = field(default_factory=list)
    writers: list[tuple[int, Solution]] = field(default_factory=list)
    written: list[StepDecided | LostCandidate] = field(default_factory=list)
    output: Solution | None = None

    def __post_init__(self) -> None:
        self.solutions = [Solution(self.slots[0])]

    @property
    def select(self) -> Selection:
        return self.request.select or Best()

    @property
    def width(self) -> int:
        """Solutions that are kept."""
        return self.select.width if isinstance(self.select, Beam) else 1

    @property
    def scores_rewrites(self) -> bool:
        """Whether a step that the target writes is scored like the draft's."""
        return isinstance(self.select, GSI | Beam)

    @property
    def open(self) -> list[Solution]:
        """Those that go on."""
        return [solution for solution in self.solutions if not solution.finish]

    def idle(self, taken: Iterable[int]) -> list[int]:
        """Slots that are not among `taken`."""
        used = set(taken)
        return [slot for slot in self.slots if slot not in used]

    def end(self) -> list[StepDecided]:
        """Makes the best beam the output; its steps, of which nobody has been told yet."""
        if self.width == 1:
            return []
        self.output = self.solutions[best([solution.reward for solution in self.solutions])]
        return self.output.told

    def tell(self, slot: int, step: StepDecided) -> tuple[list[StepDecided], bool]:
        """What becomes known with a decided step, and whether the output ends with it."""
        [solution] = (s for s in self.open if s.slot == slot)
        if not math.isnan(solution.reward):
            step = replace(step, reward=solution.reward)
        if step.kind == RecordKind.REJECTED:
            solution.reward = math.nan
        else:
            step = replace(step, candidates=solution.lost)
            solution.lost = ()
        if self.width == 1:
            return [step], bool(step.finish)
        solution.told.append(step)
        solution.finish = step.finish
        self.written.append(step)
        return [], False

    @property
    def given_up(self) -> tuple[LostCandidate, ...]:
        """What a beam search has written that its output tells nothing of."""
        told = self.output.told if self.output else []
        known = {id(one) for step in told for one in (step, *step.candidates)}
        return tuple(
            LostCandidate(one.source, one.token_ids, one.reward, None)
            for one in self.written
            if id(one) not in known
        )
