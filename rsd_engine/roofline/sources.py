"""Finds a model's config by the name of a preset, a folder, a GGUF file or a hub id.

Only the config is read: a hub id costs one small download, no weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.checkpoints.open import FolderCheckpoint, check_has_files, open_checkpoint
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.registry import find_reward_family
from rsd_engine.roofline.presets import PRESETS


def find_config(source: str, revision: str | None = None, *, is_prm: bool = False) -> ModelConfig:
    """The config of a model, as `find_model` finds it."""
    return find_model(source, revision, is_prm=is_prm)[0]


def find_model(
    source: str, revision: str | None = None, *, is_prm: bool = False
) -> tuple[ModelConfig, Checkpoint | None]:
    """The config of a model, and its checkpoint, perhaps without weights; a preset has none.

    Args:
        source: name of a preset, folder with a config.json, GGUF file or hub id.
        revision: branch, tag or commit of a hub id.
        is_prm: whether it may be a reward model that has the architecture of a language model.

    Raises:
        ValueError: there is no such model, or the engine does not run its kind.
    """
    try:
        path = Path(source).expanduser()
        preset = None if path.is_dir() else PRESETS.get(source.lower())
        if preset is not None:
            return ModelConfig.from_dict(preset), None
        checkpoint = _checkpoint(source, path, revision)
        config = ModelConfig.from_dict(checkpoint.config())
        found = find_reward_family(config.architecture, checkpoint) if is_prm else None
        return (config if found is None else replace(config, is_reward_model=True)), checkpoint
    except ValueError as error:
        message = str(error)
        raise ValueError(
            message if repr(source) in message else f"model {source!r}: {message}"
        ) from error


def _checkpoint(source: str, path: Path, revision: str | None) -> Checkpoint:
    check_has_files(source)
    if path.is_dir() or path.suffix == ".gguf":
        return open_checkpoint(path)
    if "/" not in source or path.is_absolute():
        raise ValueError(
            f"model must be a folder, a .gguf file, a hub id (owner/name) or one of "
            f"{', '.join(PRESETS)}, got {source!r}"
        )
    return _from_hub(source, revision)


def _from_hub(name: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise ValueError(f"model {name!r} is neither a folder nor a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {name!r} is not a local path, and the hub gave no config for it: {error}"
        ) from error
    return FolderCheckpoint(Path(path).parent, name)
