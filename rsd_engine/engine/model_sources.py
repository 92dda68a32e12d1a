"""Where models come from: folders, hub ids, GGUF files, or checkpoints that are open already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_engine.engine.prompts import naming_model
from rsd_engine.engine.remote.model import RemoteModel, parse_url
from rsd_engine.models.checkpoints.open import Checkpoint, is_url, open_checkpoint
from rsd_kernels.state.enums import Role

ModelSource = str | Path | Checkpoint | RemoteModel
"""A folder, hub id or GGUF file, a checkpoint that was opened already, or a model on a server."""


def check_overrides(overrides: Mapping[str, Mapping[str, Any]], names: set[str]) -> None:
    """Raises ValueError unless `hf_overrides` is of roles in `names`."""
    if not isinstance(overrides, Mapping):
        raise ValueError(f"hf_overrides must be a dict with a dict per role, got {overrides!r}")
    for name, values in overrides.items():
        if name not in names:
            raise ValueError(f"hf_overrides has {name!r}; the roles here are {sorted(names)}")
        if not isinstance(values, Mapping):
            raise ValueError(
                f"hf_overrides[{name!r}] must be a dict of fields of config.json, got {values!r}"
            )


def named_sources(
    draft: ModelSource | None, target: ModelSource | None, prm: ModelSource | None
) -> dict[Role, ModelSource | None]:
    """Each role's model, those on servers as `RemoteModel`.

    Raises:
        ValueError: a URL is not allowed, or the draft is on a server.
    """
    given = {Role.DRAFT: draft, Role.TARGET: target, Role.PRM: prm}
    return {role: _as_source(role.name.lower(), source) for role, source in given.items()}


def _as_source(name: str, source: ModelSource | None) -> ModelSource | None:
    if isinstance(source, str) and is_url(source):
        with naming_model(name):
            source = parse_url(source)
    if name == "draft" and isinstance(source, RemoteModel):
        raise ValueError(
            f"draft is on a server ({source}); it must be here, for it writes most of the tokens: "
            "give a folder, a hub id or a GGUF file"
        )
    return source


def check_roles(given: set[Role], *, scored: bool, guesses: bool) -> None:
    """Raises ValueError unless models of these roles make an engine; see `open_models`."""
    writers = {Role.DRAFT, Role.TARGET}
    allowed = [writers] if scored else [set(Role), {Role.TARGET}, {Role.DRAFT}]
    if given not in allowed and not (guesses and given == writers):
        names = sorted(role.name.lower() for role in given)
        raise ValueError(
            f"got models for {names or 'no role'}; give draft, target and prm or scorer, or target "
            "alone, or draft alone; or draft and target with max_guesses"
        )


def is_same_source(draft: ModelSource | None, target: ModelSource | None) -> bool:
    """Whether both are the same open checkpoint, path or hub id."""
    if isinstance(draft, str | Path) and isinstance(target, str | Path):
        one, other = (Path(source).expanduser() for source in (draft, target))
        return one.resolve() == other.resolve() if one.exists() else one == other
    return draft is target


def open_source(
    name: str, source: ModelSource, revision: str | None, overrides: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint of the role `name`.

    Raises:
        ValueError: it is none, or an open one that is to be overridden.
    """
    if isinstance(source, Checkpoint):
        if overrides:
            raise ValueError(
                f"hf_overrides[{name!r}] needs a folder, a hub id or a GGUF file; an open "
                "checkpoint has its own overrides"
            )
        return source
    if not isinstance(source, str | Path) or not str(source).strip():
        raise ValueError(f"{name} must be a folder, a hub id or a GGUF file, got {source!r}")
    with naming_model(name):
        local = Path(source).expanduser().exists()
        checkpoint = open_checkpoint(source, None if local else revision)
    checkpoint.overrides = overrides
    return checkpoint
