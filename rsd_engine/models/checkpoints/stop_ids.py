"""Which ids end a text. A checkpoint may say so in three places, and all of them count."""

from __future__ import annotations

from typing import Any

from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.schemas import EosSchema, TokenId


def read_stop_ids(checkpoint: Checkpoint, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text: of the generation config, the config and the tokenizer together.

    A fine-tune often names its end of turn in one of them and the end of text in another.

    Raises:
        ValueError: `eos_token_id` is not an id, a list of ids or null.
    """
    generation = EosSchema.check(checkpoint.generation_config() or {}, "generation_config.json")
    config = EosSchema.check(checkpoint.config(), "config.json")
    listed = (generation.eos_token_id, config.eos_token_id, tokenizer.eos_token_id)
    return frozenset(i for found in listed for i in _as_list(found))


def _as_list(found: TokenId | list[TokenId] | None) -> list[TokenId]:
    if found is None:
        return []
    return found if isinstance(found, list) else [found]
