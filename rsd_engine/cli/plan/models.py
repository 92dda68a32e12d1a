"""The models of a plan, and what their weights are held in on its device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.values import word_by_role
from rsd_engine.engine.memory_estimate import ModelMemory
from rsd_engine.engine.model_sources import OpenOptions
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.models.checkpoints.at_load import QUANTIZATIONS, QuantisedAtLoad, Quantization
from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.checkpoints.storage import find_storage
from rsd_engine.models.config import DTYPES, ModelConfig
from rsd_engine.models.loader import resolve_dtype, weight_form
from rsd_engine.models.weight_form import WeightForm
from rsd_engine.roofline.formats import find_format
from rsd_engine.roofline.shape import ModelShape
from rsd_engine.roofline.sources import find_model
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.formats.formats import FORMATS
from rsd_kernels.grouped.matrix import MIN_GROUP
from rsd_kernels.state.enums import Role

_CPU = torch.device("cpu")
_GPU_WORDS = ("fp8", "int8", "int4", "int4-g64", "int4-g32")
_BLOCKS = {name.lower(): form for name, form in FORMATS.items() if form.dtype is None}


@dataclass(frozen=True)
class ModelOptions:
    """The options of the command that are about the models; None takes the default.

    Attributes:
        sources: by role.
        on_cpu: whether the device is a CPU.
        quantization: of plain weights, a word for all roles or for each.
        prm_format: of a PRM that does not tell by itself that it is one.
    """

    sources: Mapping[Role, str]
    revision: str | None
    on_cpu: bool
    dtype: str | None
    quantization: str | None
    prm_format: str | dict[str, Any] | None


@dataclass(frozen=True)
class PlannedModel:
    """One role's model on the device.

    Attributes:
        memory: what decides how much it takes.
        shape: what decides the cost of a pass.
        held_in: the format of its weights; None: they are plain.
    """

    memory: ModelMemory
    shape: ModelShape
    held_in: str | None

    @property
    def config(self) -> ModelConfig:
        return self.memory.config


def find_models(options: ModelOptions) -> dict[Role, PlannedModel]:
    """The models by role.

    Raises:
        UsageError: an option does not fit the models.
        ValueError: there is no such model, or the engine does not run its kind.
    """
    _check_prm_format(options.prm_format)
    words = words_by_role(options.quantization, options.sources, on_cpu=options.on_cpu)
    dtype = find_dtype(options.dtype)
    if options.on_cpu:
        _check_computed(options.quantization, dtype)
    found = {
        role: find_model(source, options.revision, is_prm=role == Role.PRM)
        for role, source in options.sources.items()
    }
    configs = {role: config for role, (config, _) in found.items()}
    if options.prm_format is not None:
        configs[Role.PRM] = replace(configs[Role.PRM], is_reward_model=True)
    check_roles(configs, options.sources)
    make = _on_cpu if options.on_cpu else _on_gpu
    return {
        role: make(configs[role], checkpoint, dtype, _checked(role, words.get(role), checkpoint))
        for role, (_, checkpoint) in found.items()
    }


def words_by_role(
    quantization: str | None, roles: Collection[Role], *, on_cpu: bool
) -> dict[Role, str]:
    """What the weights of roles are planned in, if not as they are.

    Raises:
        UsageError: there is no such format on the device, or no such role, or no model for it.
    """
    if quantization is None:
        return {}
    allowed = (*QUANTIZATIONS, *_BLOCKS) if on_cpu else _GPU_WORDS
    found = word_by_role("--quantization", quantization.lower(), allowed)
    if isinstance(found, str):
        return dict.fromkeys(roles, found)
    words = {Role[name.upper()]: word for name, word in found.items()}
    if absent := [role.name.lower() for role in words if role not in roles]:
        raise UsageError(f"--quantization names {absent[0]}, and --{absent[0]} is not given")
    return words


def check_roles(configs: Mapping[Role, ModelConfig], sources: Mapping[Role, str]) -> None:
    """Raises UsageError unless writers are language models and the PRM is a reward model."""
    for role, config in configs.items():
        if config.is_reward_model != (role == Role.PRM):
            kinds = ("a language model", "a reward model")
            raise UsageError(
                f"--{role.name.lower()} must be {kinds[role == Role.PRM]}; "
                f"{sources[role]!r} is {kinds[config.is_reward_model]} "
                f"({config.architecture})"
            )


def find_dtype(name: str | None) -> torch.dtype | None:
    """By its name; None: the default of the device."""
    if name in (None, "auto"):
        return None
    if name not in DTYPES:
        raise UsageError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def _check_prm_format(given: str | dict[str, Any] | None) -> None:
    """Raises UsageError if there is no such format."""
    try:
        PrmOptions(given)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_computed(quantization: str | None, dtype: torch.dtype | None) -> None:
    """Raises UsageError if weights are to be quantised and products of such cannot be made."""
    try:
        OpenOptions(quantization=quantization).check_computed(dtype or "auto", _CPU)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _checked(role: Role, word: str | None, checkpoint: Checkpoint | None) -> str | None:
    """The word, which is for plain weights."""
    if word is None or checkpoint is None:
        return word
    method = _settings(checkpoint).get("quant_method") or _packing(checkpoint)
    if method is not None:
        raise UsageError(
            f"--quantization of {role.name.lower()} must be left out: {checkpoint.source!r} is "
            f"quantised already ({method}), got {word!r}"
        )
    return word


def _on_gpu(
    config: ModelConfig, checkpoint: Checkpoint | None, dtype: torch.dtype | None, word: str | None
) -> PlannedModel:
    dtype = dtype or config.dtype
    settings = _settings(checkpoint) if checkpoint else {}
    name = word or (_published(settings) if settings else None)
    weights = find_format(name) if name else None
    form = WeightForm.plain(dtype)
    expanded = f"expanded to {form.name}" if settings or _packing(checkpoint) else None
    return PlannedModel(
        ModelMemory(config, form, weights),
        ModelShape.of(config, dtype, weights=weights),
        weights.name if weights else expanded,
    )


def _published(settings: Mapping[str, Any]) -> str | None:
    """What `find_format` calls the format that this quantization_config tells of.

    None: products on a GPU are not made of it.
    """
    if settings["quant_method"] not in ("gptq", "awq"):
        return "fp8"
    bits, group = settings["bits"], settings.get("group_size", 128)
    if group != -1 and group % MIN_GROUP:
        return None
    endings = {128: "", -1: "-channel"}
    return f"int{bits}" + endings.get(group, f"-g{group}")


def _on_cpu(
    config: ModelConfig, checkpoint: Checkpoint | None, dtype: torch.dtype | None, word: str | None
) -> PlannedModel:
    """Weights are held as the engine would hold them; it rounds those that are here by itself."""
    if checkpoint is not None and _is_here(checkpoint) and (word is None or word in QUANTIZATIONS):
        opened = QuantisedAtLoad(checkpoint, QUANTIZATIONS[word]) if word else checkpoint
        form = weight_form(opened, config, dtype or "auto", _CPU)
        expanded = form.matrix_dtype is not None
        name = f"expanded to {form.name}" if expanded else form.name
        return _planned(config, form, name if _packing(opened) else None)
    if word is not None:
        known = QUANTIZATIONS.get(word) or Quantization(word, _BLOCKS[word], _BLOCKS[word])
        layers, tables = (f.block_bytes / f.block_length for f in (known.layers, known.tables))
        return _planned(config, WeightForm(torch.float32, None, layers, word, tables), word)
    found = resolve_dtype(dtype or "auto", config, _CPU)
    kept = found == torch.float32 and cpu_ops.available()  # in the dtype of the checkpoint
    expanded = bool(checkpoint and _settings(checkpoint)) or not kept
    form = WeightForm.plain(found, None if expanded else config.dtype)
    return _planned(config, form, None)


def _planned(config: ModelConfig, form: WeightForm, held_in: str | None) -> PlannedModel:
    sizes = form.bytes_per_parameter, form.table_bytes_per_parameter
    return PlannedModel(
        ModelMemory(config, form), ModelShape.of(config, form.dtype, *sizes), held_in
    )


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The quantization_config; empty for plain weights, and for a GGUF file."""
    return checkpoint.config().get("quantization_config") or {}


def _packing(checkpoint: Checkpoint | None) -> str | None:
    """How a tensor is quantised in the files, if one is and they are here."""
    if checkpoint is None or not _is_here(checkpoint):
        return None
    return next((t.packing for t in checkpoint.tensors().values() if t.packing), None)


def _is_here(checkpoint: Checkpoint) -> bool:
    """Whether its weights are on this machine."""
    return find_storage(checkpoint).num_files != 0
