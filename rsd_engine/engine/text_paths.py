"""How steps go through text: to a model with another vocabulary, and at the end of a kept step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rsd_engine.core.host_steps import HostBridge, HostEnds
from rsd_engine.core.writer_contexts import Translate
from rsd_engine.engine.models import ModelSet, WriterModel
from rsd_engine.loop.rsd import Loop
from rsd_engine.steps.step_ends import StepEnds
from rsd_engine.steps.text_bridge import TextBridge
from rsd_engine.steps.translation import StepTranslator
from rsd_kernels.state.enums import Role
from rsd_kernels.state.tables import BY_TEXT

logger = logging.getLogger("rsd_engine")


def text_bridges(models: ModelSet, loop: Loop) -> dict[Role, HostBridge] | None:
    """How the host brings the steps of each writer to the PRM; None where it never does."""
    prm = models.prm
    if prm is None:
        return None
    if loop.merges is None:
        if not models.separate:
            logger.info("prm: its steps are tokenised from text, on the host (slower)")
    elif not _says_what_it_lacks(models, loop) and all(w.loaded for w in models.writers.values()):
        return None
    form = prm.format

    def bridge(writer: WriterModel) -> HostBridge:
        made = TextBridge(writer.vocabulary, form.encoder, form.separator_ids, form.encode_step)
        return made.step_tokens

    return models.of_vocabularies(bridge)


def _says_what_it_lacks(models: ModelSet, loop: Loop) -> bool:
    """Whether there are tokens whose letters the PRM reads; logs them."""
    prm_token = next(iter(loop.tables.values())).prm_token
    missing = (prm_token == BY_TEXT).nonzero().flatten().tolist()
    if missing:
        data = models.main.vocabulary.token_bytes
        tokens = ", ".join(repr(data[i].decode("utf-8", "replace")) for i in missing[:3])
        logger.info(
            "prm: it reads the letters of tokens that it lacks (%s%s); steps with them are "
            "tokenised from text, on the host", tokens, ", ..." if len(missing) > 3 else "",
        )  # fmt: skip
    return bool(missing)


def translations(models: ModelSet) -> dict[Role, Translate] | None:
    """From the tokens of each writer to those of the other; None where they are the same."""
    if not models.separate:
        return None
    draft, target = models.writers[Role.DRAFT], models.writers[Role.TARGET]

    def translate(writer: WriterModel, reader: WriterModel) -> Translate:
        num_ids = models.num_ids_of(reader)
        return StepTranslator(writer.vocabulary, reader.vocabulary, num_ids).translate

    return {Role.DRAFT: translate(draft, target), Role.TARGET: translate(target, draft)}


def may_settle_ends(models: ModelSet) -> bool:
    """Whether draft and target may read other tokens of a kept step than were written.

    Not where each has a vocabulary, and not where a scorer reads the same K and V.
    """
    if models.prm is not None and models.prm.format.as_written:
        logger.info("step ends: read as they were written, for the scorer reads the same tokens")
        return False
    return not models.separate


def host_ends(models: ModelSet, loop: Loop, delimiters: Sequence[str]) -> HostEnds | None:
    """Tokenises the ends of kept steps that the device cannot; None if they stay as written."""
    if loop.ends is None:
        return None
    if loop.ends.merges is None:
        logger.info("step ends: tokenised again from text, on the host (slower)")
    return StepEnds(models.main.vocabulary, delimiters).end_tokens
