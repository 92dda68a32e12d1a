r"""Settings as they are typed: `temperature 0.7`, `threshold 0.9`, `stop "\n\n"`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rsd_engine.cli.config_file import sampling_values
from rsd_engine.cli.errors import UsageError
from rsd_engine.steps.text_form import Numbers

_NO_USE = ("n", "logprobs", "prompt_logprobs")


def parse_setting(name: str, text: str) -> tuple[str, Any]:
    """The field of SamplingParams and its value, as JSON; the value is not checked yet.

    `threshold` is short for the policy of this name. Text need not be quoted.

    Raises:
        ValueError: the field is of no use in a chat.
    """
    field = field_of(name)
    _check_field(field)
    if name == "threshold":
        return field, f"threshold:{text}"
    try:
        return field, json.loads(text)
    except (ValueError, RecursionError):
        return field, text


def field_of(name: str) -> str:
    """The field that a name stands for."""
    return "policy" if name == "threshold" else name.replace("-", "_")


def first_settings(config: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The settings that a chat begins with.

    Args:
        config: the [sampling] table of a config file, checked.
        assignments: `NAME=VALUE` of the command line, which count more.

    Raises:
        UsageError: one of them is not allowed.
    """
    found = dict(config)
    for field, value in found.items():
        _check_field(field)
        if isinstance(value, Numbers):
            found[field] = value.text
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        try:
            if not (name and text):
                raise ValueError("it must be NAME=VALUE, such as temperature=0.7")
            field, value = parse_setting(name.strip(), text.strip())
            sampling_values({**found, field: value})
        except ValueError as error:
            raise UsageError(f"--set {assignment}: {error}") from None
        found[field] = value
    return found


def _check_field(field: str) -> None:
    if field in _NO_USE:
        raise UsageError(f"{field} cannot be set: a chat shows one answer, without logprobs")
