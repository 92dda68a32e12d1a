"""What `rsd generate` runs with: its options over the defaults of the config file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rsd_engine.cli import values
from rsd_engine.cli.config_file import GENERATE, Config, sampling_values
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.options import GenerateOptions
from rsd_engine.cli.generate.questions import ChatSettings

if TYPE_CHECKING:
    from rsd_engine import Engine

_ENGINE = (
    "draft", "target", "prm", "revision", "device", "dtype", "max_num_seqs", "max_model_len",
    "gpu_memory_utilization", "executor", "step_ends",
)  # fmt: skip
# What may differ between a run and the one that resumes it, because no result depends on it.
_FREE = (
    "device", "max_num_seqs", "kv_cache_memory_bytes", "gpu_memory_utilization", "executor",
)  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """What is the same for every prompt of a run."""

    make_engine: Callable[[], Engine]
    sampling: dict[str, Any]  # fields of SamplingParams, from the command line and the config
    chat: ChatSettings
    digest: str  # of all settings that decide the results


@dataclass(frozen=True)
class ShowSettings:
    """How the result of one prompt is shown."""

    show_steps: bool = False
    json: bool = False


def run_settings(options: GenerateOptions, config: Config) -> RunSettings:
    """The settings of a run.

    Raises:
        UsageError: an option is not allowed, no model is given, or a file cannot be read.
    """
    engine = _engine_arguments(options, config)
    sampling = _sampling_arguments(options, config)
    form = config.generate | _given(options, GENERATE)
    chat = _chat_settings(form)
    decisive = {
        "engine": {name: value for name, value in engine.items() if name not in _FREE},
        "sampling": sampling,
        "chat": chat.chat,
        "system": chat.system,
        **chat.options,
    }
    text = json.dumps(decisive, sort_keys=True, default=repr)
    return RunSettings(
        make_engine=lambda: make_engine(engine, verbose=form.get("verbose", False)),
        sampling=sampling,
        chat=chat,
        digest=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    )


def show_settings(options: GenerateOptions, config: Config) -> ShowSettings:
    names = [field.name for field in fields(ShowSettings)]
    found = {name: config.generate[name] for name in names if name in config.generate}
    return ShowSettings(**(found | _given(options, names)))


def make_engine(arguments: dict[str, Any], *, verbose: bool) -> Engine:
    """Makes an engine with these arguments; with `verbose` its log goes to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rsd_engine").setLevel(logging.INFO if verbose else logging.WARNING)
    from rsd_engine import Engine

    return Engine(**arguments)


def _given(options: GenerateOptions, names: Iterable[str]) -> dict[str, Any]:
    found = {name: getattr(options, name) for name in names}
    return {name: value for name, value in found.items() if value is not None and value != []}


def _engine_arguments(options: GenerateOptions, config: Config) -> dict[str, Any]:
    found = config.engine | _given(options, _ENGINE)
    if options.kv_cache_memory is not None:
        found["kv_cache_memory_bytes"] = values.size("--kv-cache-memory", options.kv_cache_memory)
    if options.hf_overrides is not None:
        found["hf_overrides"] = values.json_object("--hf-overrides", options.hf_overrides)
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


def _sampling_arguments(options: GenerateOptions, config: Config) -> dict[str, Any]:
    from rsd_engine.sampling_params import SamplingParams

    own = _given(options, (field.name for field in fields(SamplingParams)))
    for name, flag in (("stop", "--stop"), ("bad_words", "--bad-word")):
        if name in own:
            own[name] = [values.unescape(flag, item) for item in own[name]]
    if "logit_bias" in own:
        own["logit_bias"] = values.json_object("--logit-bias", own["logit_bias"])
    try:
        own = sampling_values(own)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return config.sampling | own


def _chat_settings(form: dict[str, Any]) -> ChatSettings:
    options: dict[str, Any] = {}
    if "chat_template" in form:
        options["chat_template"] = values.text_file("chat template", form["chat_template"])
    if "chat_template_kwargs" in form:
        options["chat_template_kwargs"] = values.json_object(
            "--chat-template-kwargs", form["chat_template_kwargs"]
        )
    if "tools" in form:
        options["tools"] = values.json_file("tools", form["tools"])
        if not isinstance(options["tools"], list):
            raise UsageError(f"tools {form['tools']} must hold a JSON list of tools")
    return ChatSettings(form.get("chat"), form.get("system"), options)
