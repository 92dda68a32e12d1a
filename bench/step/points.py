"""One measured point of `bench.step_latency`: scenes, parts of a step, limits, and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.lib.timing import Timing
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.roofline.rounds import Setting, Triple, round_seconds
from rsd_engine.roofline.shape import ModelShape
from rsd_kernels.state.enums import Role

DRAFT, TARGET, KEEP, REJECT, MIXED = "draft alone", "target alone", "keep", "reject", "mixed"
SCENES = (DRAFT, TARGET, KEEP, REJECT, MIXED)
SCORE = "score"

HEADERS = (
    "executor", "slots", "context", "ms a step", "spread", "x limit", "kept", "tok/s", "draft",
    "x", "score", "x", "decide", "rewrite", "x", "roll back", "catch up",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One executor at one number of slots and one context."""

    executor: str
    slots: int
    context: int
    step_tokens: int
    scenes: dict[str, Timing]  # seconds in which every slot gets a step
    score: Timing  # seconds of the PRM's passes in the scene that keeps all
    acceptance: float  # of the mixed scene, as it came out
    limits: dict[str, float]  # least seconds, by scene and of the score

    @property
    def tokens_per_second(self) -> float:
        return self.slots * self.step_tokens / self.scenes[MIXED].median

    def parts(self) -> dict[str, float]:
        """Seconds of a step by part, from differences of scenes.

        `draft` and `rewrite` are the models alone; `score` is the PRM's passes; `decide` is the
        rest of what a kept step costs above the draft alone; `roll back` is what a rejected step
        costs above a kept one and its rewrite, draft and PRM reading the rewrite included;
        `catch up` is what mixed steps cost above so many kept and so many rejected ones: the
        target reads the kept ones, and slots wait for other roles' passes. A part may come out
        below 0 where it is smaller than the spread.
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
        """Measured seconds over the least possible ones."""
        found = {name: self.scenes[name].median / self.limits[name] for name in SCENES}
        return found | {SCORE: self.score.median / self.limits[SCORE]}

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
            "limit_seconds": self.limits,
            "times_limit": self.multiples(),
        }


def triple_of(models: Mapping[Role, LanguageModel | RewardModel]) -> Triple:
    """The shapes of an engine's models."""
    draft, target, prm = (
        ModelShape.of(model.config, model.dtype, model.decoder.weights.matrix_dtype)
        for model in (models[Role.DRAFT], models[Role.TARGET], models[Role.PRM])
    )
    return Triple(draft, target, prm)


def step_limits(triple: Triple, setting: Setting, acceptance: float) -> dict[str, float]:
    """The least seconds in which every slot gets a step: by scene, and of the PRM's pass."""
    rounds = {KEEP: 1.0, REJECT: 0.0, MIXED: acceptance}
    return {
        DRAFT: setting.step_tokens * setting.seconds(triple.draft),
        TARGET: setting.step_tokens * setting.seconds(triple.target),
        SCORE: round_seconds(triple, setting, 1.0).score,
        **{name: round_seconds(triple, setting, a).total for name, a in rounds.items()},
    }
