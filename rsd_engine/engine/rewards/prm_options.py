"""What the user says of a PRM's format, in place of what its checkpoint tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from rsd_engine.arguments import check_text
from rsd_engine.models.checkpoints.open import Checkpoint
from rsd_engine.models.loader import reward_family_of
from rsd_engine.models.registry import reward_family
from rsd_engine.models.reward.family import PrmFormat, RewardFamily
from rsd_engine.models.reward.template import PrmTemplate, separator_ids

STEP_DELIMITER = "\n\n"  # of the paper's models and of the PRM families
PrmFormatLike = str | PrmTemplate | RewardFamily | Mapping[str, Any]


@dataclass(frozen=True)
class PrmOptions:
    """Arguments of `Engine` about its PRM, checked.

    Args:
        format: a family's name, or a format of one's own: a `PrmTemplate`, a dict of its fields,
            or a `RewardFamily`; None takes what the checkpoint tells.
        separator: what follows every step; None takes that of the format. A family may follow the
            step delimiters.
        delimiters: strings that end a step of the writers.

    Raises:
        ValueError: an argument is not allowed.
    """

    format: PrmFormatLike | None = None
    separator: str | None = None
    delimiters: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", _format(self.format))
        if self.separator is not None:
            check_text("prm_separator", self.separator)
            if not self.separator:
                raise ValueError("prm_separator is empty; the reward is read at its last token")

    def check_not_given(self) -> None:
        """Raises ValueError if something is said of a PRM that is not there."""
        for name in ("format", "separator"):
            if getattr(self, name) is not None:
                raise ValueError(f"prm_{name} is given and no prm; give one, or leave it out")

    def family_of(self, checkpoint: Checkpoint) -> RewardFamily:
        """What a checkpoint is, and how it is fed.

        Raises:
            ValueError: it is no reward model, or does not tell which.
        """
        family = self._chosen(checkpoint)
        separator = self.separator
        follows = family.follows_delimiters and self.delimiters
        if separator is None and follows and self.delimiters[0] != STEP_DELIMITER:
            separator = self.delimiters[0]
        if separator is None:
            return family
        return replace(family, format=partial(_with_separator, family, separator))

    def _chosen(self, checkpoint: Checkpoint) -> RewardFamily:
        asked = self.format
        if isinstance(asked, RewardFamily):
            return asked
        if isinstance(asked, PrmTemplate):
            below = asked.family
            return asked.applied_to(reward_family(below) if below else reward_family_of(checkpoint))
        return reward_family_of(checkpoint)


def _format(asked: PrmFormatLike | None) -> PrmTemplate | RewardFamily | None:
    """The family of a name, the template of a dict; a template's family must be known too."""
    if isinstance(asked, str):
        return reward_family(asked)
    if isinstance(asked, Mapping):
        allowed = [field.name for field in fields(PrmTemplate)]
        if set(asked) - set(allowed) or not {"prompt", "separator"} <= set(asked):
            raise ValueError(
                f"prm_format must have 'prompt' and 'separator', and may have {allowed[2:]}, got "
                f"{list(asked)}"
            )
        asked = PrmTemplate(**asked)
    if isinstance(asked, PrmTemplate) and asked.family is not None:
        reward_family(asked.family)
    if not isinstance(asked, PrmTemplate | RewardFamily | None):
        raise ValueError(
            "prm_format must be a family's name, a PrmTemplate, a dict of its fields or a "
            f"RewardFamily, got {asked!r}"
        )
    return asked


def _with_separator(family: RewardFamily, separator: str, tokenizer: Any) -> PrmFormat:
    """The family's format with another separator; what is read and forgotten again stays."""
    form = family.format(tokenizer)
    if form.encode_step is not None:
        raise ValueError(
            f"prm_separator={separator!r} is given for a PRM of {family.name}, which reads a step "
            "together with the text around it; leave it out"
        )
    kept = len(form.separator_ids) - form.num_transient
    ids = (*separator_ids(tokenizer, separator), *form.separator_ids[kept:])
    return replace(form, separator_ids=ids)
