"""Merged models: a PRM that is the target's decoder with a reward head, on one set of weights."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.config import ModelConfig

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_OF_THE_HEAD = {"architecture", "is_reward_model", "tie_word_embeddings"}


def is_merged(
    target: Checkpoint, prm: Checkpoint, target_config: ModelConfig, prm_config: ModelConfig
) -> bool:
    """Whether target and PRM are one decoder: the same checkpoint, or the same files of weights.

    Two folders may each have a config.json of their own and links to the same weights.
    """
    same_weights = target is prm or (bool(_files(target)) and _files(target) == _files(prm))
    names = {field.name for field in fields(ModelConfig)} - _OF_THE_HEAD
    same_decoder = all(getattr(target_config, n) == getattr(prm_config, n) for n in names)
    # LongRoPE chooses its factors by the longest context, which may be the PRM's alone.
    rotates_alike = all(rope.type != "longrope" for rope in target_config.ropes)
    return same_weights and same_decoder and rotates_alike


def _files(checkpoint: Checkpoint) -> set[tuple[int, int]]:
    """Device and inode of every file of weights in a local folder."""
    folder = Path(checkpoint.source).expanduser()
    found = [path for pattern in _WEIGHTS for path in folder.glob(pattern)]
    return {(path.stat().st_dev, path.stat().st_ino) for path in found if path.is_file()}
