"""Where models come from: folders, hub ids, GGUF files, or checkpoints that are open already."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsd_engine.engine.prompts import naming_model
from rsd_engine.engine.remote.model import RemoteModel, parse_url
from rsd_engine.models.checkpoints.at_load import QUANTIZATIONS, QuantisedAtLoad
from rsd_engine.models.checkpoints.grouped_at_load import KINDS, GroupedAtLoad
from rsd_engine.models.checkpoints.open import Checkpoint, is_url, open_checkpoint
from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.state.enums import Role

# What plain weights can be rounded to as they are loaded, on some device.
QUANTIZATION_WORDS = tuple(dict.fromkeys((*QUANTIZATIONS, *KINDS)))

ModelSource = str | Path | Checkpoint | RemoteModel
"""A folder, hub id or GGUF file, a checkpoint that was opened already, or a model on a server."""


@dataclass(frozen=True)
class OpenOptions:
    """How checkpoints are opened, as `Engine` takes it; mappings are by names of roles.

    Attributes:
        revision: of hub ids.
        hf_overrides: fields of config.json to replace.
        quantization: at load, a word in `QUANTIZATION_WORDS`, for all roles or for each.
    """

    revision: str | None = None
    hf_overrides: Mapping[str, Mapping[str, Any]] | None = None
    quantization: str | Mapping[str, str] | None = None

    def check(self, names: Collection[str]) -> None:
        """Raises ValueError unless all is well formed, and of roles in `names`."""
        overrides, quantization = self.hf_overrides, self.quantization
        if overrides is not None:
            check_by_role("hf_overrides", overrides, names)
            for name, values in overrides.items():
                if not isinstance(values, Mapping):
                    raise ValueError(
                        f"hf_overrides[{name!r}] must be a dict of fields of config.json, got "
                        f"{values!r}"
                    )
        if quantization is not None and not isinstance(quantization, str):
            check_by_role("quantization", quantization, names)
        for name in names:
            self.quantization_of(name)

    def check_computed(self, dtype: str | torch.dtype, device: torch.device) -> None:
        """Raises ValueError if weights are to be quantised and products of such cannot be made."""
        given = self.quantization
        if given is None or device.type == "cuda":
            return
        words = given.values() if isinstance(given, Mapping) else [given]
        if absent := [word for word in words if word in KINDS.keys() - QUANTIZATIONS.keys()]:
            raise ValueError(
                f"quantization {absent[0]!r} is for a GPU, and the device is {device}; take one of "
                f"{', '.join(QUANTIZATIONS)}"
            )
        wanted = f"quantization={given!r} on a CPU is for float32 and the CPU library"
        if dtype not in ("auto", "float32", torch.float32):
            raise ValueError(f"{wanted}, and dtype={dtype!r}; leave one of them out")
        if not cpu_ops.available():
            raise ValueError(f"{wanted}, which is {cpu_library.status()}; see `rsd doctor`")

    def overrides_of(self, name: str) -> Mapping[str, Any]:
        return (self.hf_overrides or {}).get(name, {})

    def quantization_of(self, name: str) -> str | None:
        """What the weights of the role `name` are rounded to.

        Raises:
            ValueError: there is none of the name that was given.
        """
        given = self.quantization
        asked = given if given is None or isinstance(given, str) else given.get(name)
        if asked is None:
            return None
        if not isinstance(asked, str) or asked not in QUANTIZATION_WORDS:
            allowed = ", ".join(map(repr, QUANTIZATION_WORDS))
            raise ValueError(f"quantization of {name} is {asked!r}; it must be one of {allowed}")
        return asked

    def alike(self, one: Role, other: Role) -> bool:
        """Whether two roles of one source are one model."""
        names = [role.name.lower() for role in (one, other)]
        first, second = ((self.overrides_of(n), self.quantization_of(n)) for n in names)
        return first == second

    def open(self, name: str, source: ModelSource, device: torch.device) -> Checkpoint:
        """The checkpoint of the role `name`, for this device.

        Raises:
            ValueError: it is none, an open one that is to be overridden, or one that is quantised
                already and is to be quantised.
        """
        return self.quantised(name, self._opened(name, source), device)

    def quantised(self, name: str, checkpoint: Checkpoint, device: torch.device) -> Checkpoint:
        """The open checkpoint of the role `name`, its weights rounded if they are to be.

        Raises:
            ValueError: it is quantised already and is to be quantised.
        """
        word = self.quantization_of(name)
        if word is None:
            return checkpoint
        with naming_model(name):
            if device.type == "cuda":
                return GroupedAtLoad(checkpoint, word)
            return QuantisedAtLoad(checkpoint, QUANTIZATIONS[word])

    def _opened(self, name: str, source: ModelSource) -> Checkpoint:
        overrides = self.overrides_of(name)
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
            checkpoint = open_checkpoint(source, None if local else self.revision)
        checkpoint.overrides = overrides
        return checkpoint


def check_by_role(argument: str, given: object, names: Collection[str]) -> None:
    """Raises ValueError unless `given` is a dict with names of these roles."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{argument} must be a dict by role, got {given!r}")
    for name in given:
        if name not in names:
            raise ValueError(f"{argument} has {name!r}; the roles here are {sorted(names)}")


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
