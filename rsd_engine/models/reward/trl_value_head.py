"""A language model with the value head of TRL, on any decoder, read as Skywork's PRMs are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.registry import decoder_families
from rsd_engine.models.reward.family import PrmFormat
from rsd_engine.models.reward.skywork import SKYWORK, newline_format

_HEAD = "v_head.summary.weight"


def _format(tokenizer: Any) -> PrmFormat:
    """As Skywork's, with the tokenizer's own bos, or none."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return newline_format(tokenizer, () if bos is None else (int(bos),))


def _has_value_head(checkpoint: Checkpoint) -> bool:
    """What it is stands in its weights alone: the config is that of the language model."""
    try:
        return any(name.endswith(_HEAD) for name in checkpoint.tensors())
    except ValueError:  # weights that are not there yet, or bad: loading says what is wrong
        return False


TRL_VALUE_HEAD = replace(
    SKYWORK,
    name="TRL-value-head",
    architectures=decoder_families(),
    format=_format,
    recognise=_has_value_head,
)
