"""The least time of a step, by scene, that the hardware allows for an engine's models."""

from __future__ import annotations

from collections.abc import Mapping

from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.roofline.rounds import Setting, Triple, round_seconds
from rsd_engine.roofline.shape import ModelShape
from rsd_kernels.state.enums import Role

DRAFT, TARGET, KEEP, REJECT, MIXED = "draft alone", "target alone", "keep", "reject", "mixed"
SCENES = (DRAFT, TARGET, KEEP, REJECT, MIXED)
SCORE = "score"


def triple_of(models: Mapping[Role, LanguageModel | RewardModel]) -> Triple:
    """The shapes of an engine's models."""
    draft, target, prm = (
        ModelShape.of(
            model.config, model.dtype, model.decoder.weights.nbytes / model.config.num_parameters
        )
        for model in (models[Role.DRAFT], models[Role.TARGET], models[Role.PRM])
    )
    return Triple(draft, target, prm)


def step_roofline(triple: Triple, setting: Setting, acceptance: float) -> dict[str, float]:
    """Least seconds in which every slot gets a step, by scene, and those of the PRM's pass."""
    rounds = {KEEP: 1.0, REJECT: 0.0, MIXED: acceptance}
    return {
        DRAFT: setting.step_tokens * setting.seconds(triple.draft),
        TARGET: setting.step_tokens * setting.seconds(triple.target),
        SCORE: round_seconds(triple, setting, 1.0).score,
        **{name: round_seconds(triple, setting, a).total for name, a in rounds.items()},
    }
