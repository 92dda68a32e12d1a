"""Finds a model's config by the name of a preset, a folder, a GGUF file or a hub id.

Only the config is read: a hub id costs one small download, no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.config import ModelConfig
from rsd_engine.roofline.presets import PRESETS


def find_config(source: str, revision: str | None = None) -> ModelConfig:
    """The config of a model.

    Args:
        source: name of a preset, folder with a config.json, GGUF file or hub id.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: there is no such model, or the engine does not run its kind.
    """
    try:
        return ModelConfig.from_dict(_raw(source, revision))
    except ValueError as error:
        message = str(error)
        raise ValueError(
            message if repr(source) in message else f"model {source!r}: {message}"
        ) from error


def _raw(source: str, revision: str | None) -> Mapping[str, Any]:
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix == ".gguf":
        return open_checkpoint(path).config()
    preset = PRESETS.get(source.lower())
    if preset is not None:
        return preset
    if "/" not in source or path.is_absolute():
        raise ValueError(
            f"model must be a folder, a .gguf file, a hub id (owner/name) or one of "
            f"{', '.join(PRESETS)}, got {source!r}"
        )
    return _from_hub(source, revision)


def _from_hub(name: str, revision: str | None) -> Mapping[str, Any]:
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
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(
            f"the config.json of model {name!r} must be a JSON object, got {type(found).__name__}"
        )
    return found
