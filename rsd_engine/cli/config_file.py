"""Reads defaults from a TOML file; options on the command line override them.

[engine]        # arguments of rsd_engine.Engine
draft = "models/draft"
policy = "threshold:0.7"
kv_cache_memory_bytes = "2GiB"

[sampling]      # fields of rsd_engine.SamplingParams
temperature = 0.0

[generate]      # options of `rsd generate`
chat = true

[demo]          # options of `rsd demo`
problems = 5
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.values import (
    Check,
    checked,
    flag,
    integer,
    json_object,
    number,
    policy,
    prm_format,
    quantization,
    scorer,
    size,
    text,
    text_file,
    texts,
)

ENGINE: Mapping[str, Check] = {
    "draft": text,
    "target": text,
    "prm": text,
    "policy": policy,
    "device": text,
    "dtype": text,
    "max_num_seqs": integer,
    "max_model_len": integer,
    "kv_cache_memory_bytes": size,
    "gpu_memory_utilization": number,
    "step_delimiters": texts,
    "step_ends": text,
    "revision": text,
    "hf_overrides": json_object,
    "quantization": quantization,
    "executor": text,
    "max_guesses": integer,
    "enable_prefix_caching": flag,
    "prm_format": prm_format,
    "prm_separator": text,
    "scorer": scorer,
}
GENERATE: Mapping[str, Check] = {
    "chat": flag,
    "system": text,
    "chat_template": text,
    "chat_template_kwargs": json_object,
    "tools": text,
    "show_steps": flag,
    "json": flag,
    "verbose": flag,
}
DEMO: Mapping[str, Check] = {
    "problems": integer,
    "compare": integer,
    "threshold": number,
    "seed": integer,
    "device": text,
    "draft": text,
    "target": text,
    "prm": text,
    "quantization": quantization,
    "json": flag,
    "verbose": flag,
}


@dataclass(frozen=True)
class Config:
    """The tables of a config file, with keys and types checked."""

    engine: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    demo: dict[str, Any] = field(default_factory=dict)


def read_config(path: Path | None) -> Config:
    """Reads a config file; without a path the config is empty.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has a key or value that is not allowed.
    """
    if path is None:
        return Config()
    try:
        found = tomllib.loads(text_file("the config file", path))
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is not usable TOML: nested too deeply") from None
    try:
        return _tables(found)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _tables(found: dict[str, Any]) -> Config:
    allowed = ("engine", "sampling", "generate", "demo")
    for name, table in found.items():
        if name not in allowed or not isinstance(table, dict):
            raise UsageError(f"unknown table or key {name!r}; allowed tables: {list(allowed)}")
    return Config(
        engine=checked("engine", found.get("engine", {}), ENGINE),
        sampling=_sampling(found.get("sampling", {})),
        generate=checked("generate", found.get("generate", {}), GENERATE),
        demo=checked("demo", found.get("demo", {}), DEMO),
    )


def _sampling(table: dict[str, Any]) -> dict[str, Any]:
    if not table:
        return {}
    try:
        return sampling_values(table)
    except ValueError as error:
        raise UsageError(f"[sampling]: {error}") from None


def sampling_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checked fields of SamplingParams, from JSON or TOML, where policy and selection are text.

    Raises:
        ValueError: a key is unknown or a value not allowed.
    """
    from rsd_engine.sampling_params import TEXT_FORMS, SamplingParams

    values = dict(given)
    for name in TEXT_FORMS.keys() & values.keys():
        if values[name] is not None:
            values[name] = TEXT_FORMS[name](text(name, values[name]))
    SamplingParams.from_dict(values)
    return values
