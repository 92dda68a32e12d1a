"""The options that make an engine, shared by commands, over the defaults of a config file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.config_file import Config
from rsd_engine.cli.errors import UsageError

if TYPE_CHECKING:
    from rsd_engine import Engine

_ENGINE = (
    "draft", "target", "prm", "revision", "device", "dtype", "max_num_seqs", "max_model_len",
    "gpu_memory_utilization", "executor", "max_guesses", "step_ends", "enable_prefix_caching",
)  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """The command line; None, or an empty list, stands for an option that was not given."""

    draft: o.Draft = None
    target: o.Target = None
    prm: o.Prm = None
    scorer: o.ScorerOption = None
    prm_format: o.PrmFormat = None
    prm_separator: o.PrmSeparator = None
    revision: o.Revision = None
    hf_overrides: o.HfOverrides = None
    quantization: o.QuantizationOption = None
    device: o.Device = None
    dtype: o.Dtype = None
    max_num_seqs: o.MaxNumSeqs = None
    max_model_len: o.MaxModelLen = None
    kv_cache_memory: o.KvCacheMemory = None
    gpu_memory_utilization: o.GpuMemoryUtilization = None
    executor: o.Executor = None
    max_guesses: o.MaxGuesses = None
    enable_prefix_caching: o.EnablePrefixCaching = None
    policy: o.PolicyOption = None
    step_delimiter: o.StepDelimiter = None
    no_steps: o.NoSteps = False
    step_ends: o.StepEnds = None
    config: o.ConfigFile = None
    verbose: o.Verbose = None


def engine_arguments(options: EngineOptions, config: Config) -> dict[str, Any]:
    """The arguments of `Engine`.

    Raises:
        UsageError: an option is not allowed, or no model is given.
    """
    found = config.engine | given(options, _ENGINE)
    if options.kv_cache_memory is not None:
        found["kv_cache_memory_bytes"] = values.size("--kv-cache-memory", options.kv_cache_memory)
    if options.hf_overrides is not None:
        found["hf_overrides"] = values.json_object("--hf-overrides", options.hf_overrides)
    if options.quantization is not None:
        found["quantization"] = values.quantization("--quantization", options.quantization)
    if options.scorer is not None:
        found["scorer"] = values.scorer("--scorer", options.scorer)
    if options.prm_format is not None:
        found["prm_format"] = values.prm_format("--prm-format", options.prm_format)
    if options.prm_separator is not None:
        found["prm_separator"] = values.unescape("--prm-separator", options.prm_separator)
    if options.policy is not None:
        found["policy"] = values.policy("--policy", options.policy)
    if options.step_delimiter:
        if options.no_steps:
            raise UsageError("--no-steps and --step-delimiter exclude each other")
        found["step_delimiters"] = [
            values.unescape("--step-delimiter", item) for item in options.step_delimiter
        ]
    if options.no_steps:
        found["step_delimiters"] = None
    if not {"draft", "target"} & set(found):
        raise UsageError(
            "no model is given; give --draft, --target and --prm or --scorer, or --draft or "
            "--target alone, or name them in the [engine] table of --config"
        )
    return found


def make_engine(arguments: dict[str, Any], *, verbose: bool) -> Engine:
    """Makes an engine with these arguments; with `verbose` its log goes to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rsd_engine").setLevel(logging.INFO if verbose else logging.WARNING)
    from rsd_engine import Engine

    return Engine(**arguments)


def given(options: EngineOptions, names: Iterable[str]) -> dict[str, Any]:
    """The options of these names that were given."""
    found = {name: getattr(options, name) for name in names}
    return {name: value for name, value in found.items() if value is not None and value != []}
