"""What `rsd generate` runs with: its options over the defaults of the config file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rsd_engine.cli import values
from rsd_engine.cli.config_file import GENERATE, Config, sampling_values
from rsd_engine.cli.engine_options import engine_arguments, given, make_engine
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.options import GenerateOptions
from rsd_engine.engine.chat.questions import ChatSettings, settings_text

if TYPE_CHECKING:
    from rsd_engine import Engine


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
    engine = engine_arguments(options, config)
    sampling = _sampling_arguments(options, config)
    form = config.generate | given(options, GENERATE)
    chat = chat_settings(form)
    text = settings_text(engine, sampling, chat)
    return RunSettings(
        make_engine=lambda: make_engine(engine, verbose=form.get("verbose", False)),
        sampling=sampling,
        chat=chat,
        digest=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    )


def show_settings(options: GenerateOptions, config: Config) -> ShowSettings:
    names = [field.name for field in fields(ShowSettings)]
    found = {name: config.generate[name] for name in names if name in config.generate}
    return ShowSettings(**(found | given(options, names)))


def _sampling_arguments(options: GenerateOptions, config: Config) -> dict[str, Any]:
    from rsd_engine.sampling_params import SamplingParams

    own = given(options, (field.name for field in fields(SamplingParams)))
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


def chat_settings(form: dict[str, Any]) -> ChatSettings:
    """How questions become what the engine takes.

    Args:
        form: options of `rsd generate`, or the table of its defaults.

    Raises:
        UsageError: a file cannot be read, or a value is not allowed.
    """
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
