"""What the matrices of a checkpoint would be held in, and what a pass would read of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rsd_engine.models.allocation import LM_HEAD
from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.config import DTYPES, ModelConfig
from rsd_engine.models.names import with_plain_names
from rsd_engine.models.weight_form import WeightForm
from rsd_engine.models.weights import EMBEDDING
from rsd_engine.roofline.shape import ModelShape


@dataclass(frozen=True)
class FormatShare:
    """The matrices of a model that are held in one format.

    Attributes:
        format: such as "bfloat16" or "Q4_K".
        expanded_from: the format of the file, where products are not made of it; None: they are.
        num_bytes: in memory.
        read_bytes: of these, what a pass reads: all but an embedding of which it looks up rows.
    """

    format: str
    expanded_from: str | None
    num_bytes: int
    read_bytes: int


def shares_of(
    checkpoint: Checkpoint, config: ModelConfig, form: WeightForm
) -> tuple[FormatShare, ...]:
    """The formats of the matrices of a checkpoint that is here; that of most bytes is the first.

    Raises:
        ValueError: the headers of its weights cannot be read.
    """
    stored = with_plain_names(checkpoint.tensors(), checkpoint.source)
    return _summed(
        FormatShare(
            held_in,
            stored[name].packing if held_in in DTYPES else None,
            num_bytes,
            0 if name == EMBEDDING and not _is_head(config) else num_bytes,
        )
        for name, (held_in, num_bytes) in form.held(stored).items()
        if not (name == LM_HEAD and _has_no_head(config))
    )


def shares_by_config(config: ModelConfig, form: WeightForm) -> tuple[FormatShare, ...]:
    """The same of a checkpoint whose weights are not here, all of them plain."""
    shape = ModelShape.of(config, form.dtype, form.bytes_per_parameter)
    return (FormatShare(form.name, None, shape.weight_bytes, shape.read_bytes),)


def _is_head(config: ModelConfig) -> bool:
    """Whether the embedding is the LM head too."""
    return config.tie_word_embeddings and not config.is_reward_model


def _has_no_head(config: ModelConfig) -> bool:
    """Whether an LM head in the file is not used, but for single rows."""
    return config.tie_word_embeddings or config.is_reward_model


def _summed(matrices: Iterable[FormatShare]) -> tuple[FormatShare, ...]:
    found: dict[tuple[str, str | None], FormatShare] = {}
    for one in matrices:
        key = (one.format, one.expanded_from)
        last = found.get(key, FormatShare(*key, 0, 0))
        found[key] = FormatShare(
            *key, last.num_bytes + one.num_bytes, last.read_bytes + one.read_bytes
        )
    return tuple(sorted(found.values(), key=lambda share: -share.num_bytes))
