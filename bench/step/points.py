"""One point of `bench.step_latency`: its scenes, the parts of a step, and its row in the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.lib.timing import Timing
from bench.step.roofline import DRAFT, MIXED, SCENES, SCORE, TARGET

HEADERS = (
    "executor", "slots", "context", "ms a step", "spread", "x limit", "kept", "tok/s", "draft",
    "x", "score", "x", "decide", "rewrite", "x", "roll back", "catch up",
)  # fmt: skip


@dataclass(frozen=True)
class StepPoint:
    """What one executor took at one number of slots and one length of context.

    Attributes:
        scenes: seconds in which every slot gets a step, by scene.
        score: seconds of the PRM's passes in the scene that keeps every step.
        acceptance: share of steps that the mixed scene kept.
        least: the roofline: least seconds, by scene, and those of the score.
    """

    executor: str
    slots: int
    context: int
    step_tokens: int
    scenes: dict[str, Timing]
    score: Timing
    acceptance: float
    least: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.slots * self.step_tokens / self.scenes[MIXED].median

    def parts(self) -> dict[str, float]:
        """Seconds of each part of a step, as differences between scenes.

        - `draft`, `rewrite`: the draft alone and the target alone.
        - `score`: the PRM's passes.
        - `decide`: what a kept step costs beyond its draft and its score.
        - `roll back`: what a rejected step costs beyond a kept one and its rewrite. Draft and PRM
          then read the rewrite, which is part of this.
        - `catch up`: what mixed steps cost beyond as many kept and rejected ones. The target reads
          the kept steps, and slots wait for passes of other roles.

        A part that is smaller than the spread may come out negative.
        """
        draft, target, keep, reject, mixed = (self.scenes[name].median for name in SCENES)
        return {
            "draft": draft,
            "score": self.score.median,
            "decide": keep - draft - self.score.median,
            "rewrite": target,
            "roll back": reject - keep - target,
            "catch up": mixed - self.acceptance * keep - (1 - self.acceptance) * reject,
        }

    def multiples(self) -> dict[str, float]:
        """Measured seconds over the least seconds of the roofline."""
        found = {name: self.scenes[name].median / self.least[name] for name in SCENES}
        return found | {SCORE: self.score.median / self.least[SCORE]}

    def row(self) -> list[str]:
        """The cells under `HEADERS`."""
        times, mixed = self.multiples(), self.scenes[MIXED]
        ms = {part: f"{1e3 * seconds:.2f}" for part, seconds in self.parts().items()}
        return [
            self.executor, str(self.slots), str(self.context), f"{1e3 * mixed.median:.2f}",
            f"{mixed.spread:.0%}", f"{times[MIXED]:.2f}", f"{self.acceptance:.0%}",
            f"{self.tokens_per_second:.0f}", ms["draft"], f"{times[DRAFT]:.2f}", ms["score"],
            f"{times[SCORE]:.2f}", ms["decide"], ms["rewrite"], f"{times[TARGET]:.2f}",
            ms["roll back"], ms["catch up"],
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "executor": self.executor,
            "slots": self.slots,
            "context": self.context,
            "acceptance": self.acceptance,
            "tokens_per_second": self.tokens_per_second,
            "seconds_a_step": {name: timing.median for name, timing in self.scenes.items()},
            "spread": {name: timing.spread for name, timing in self.scenes.items()},
            "parts": self.parts(),
            "limit_seconds": self.least,
            "times_limit": self.multiples(),
        }
