"""The arguments of the model `rsd`, as the harness passes them: text, numbers, or dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.arguments import check_integer, check_text
from rsd_engine.sampling_params import OWN_FIELDS, TEXT_FORMS
from rsd_engine.steps.scorers import parse_scorer

DEFAULT_MAX_GEN_TOKS = 256  # as the harness has it for other models
_ENGINE = tuple(inspect.signature(Engine).parameters)
_SAMPLING = (*(name for name in OWN_FIELDS if name != "policy"), "seed")
_OWN = ("max_gen_toks", "question_field", "chat_template_kwargs", "threshold")
# Of no effect: the engine gets all requests at once, and runs no code that comes with a model.
_FROM_HARNESS = ("batch_size", "max_batch_size", "trust_remote_code")
_FIELDS = {field.name for field in fields(SamplingParams)} - {"n", "logprobs", "prompt_logprobs"}
_MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class ModelArgumentError(ValueError):
    """An argument of the model is not allowed, or its engine cannot be made of them."""


@dataclass(frozen=True)
class ModelArguments:
    """What `--model_args` says.

    Attributes:
        engine: arguments of `Engine`.
        sampling: of every request, unless its task says otherwise; greedy.
        max_gen_toks: most tokens of an output, where the task names no number.
        question_field: of a document: what the PRM reads as the problem; None: the last message of
            the user, or without a chat template the whole context.
        chat_template_kwargs: more variables of the chat template.
    """

    engine: Mapping[str, Any]
    sampling: SamplingParams
    max_gen_toks: int
    question_field: str | None
    chat_template_kwargs: Mapping[str, Any]


def read_arguments(given: Mapping[str, Any]) -> ModelArguments:
    """The arguments, checked as far as that goes without an engine.

    Raises:
        ValueError: one is unknown or not allowed.
    """
    allowed = sorted({*_ENGINE, *_SAMPLING, *_OWN})
    unknown = sorted(set(given) - {*allowed, *_FROM_HARNESS})
    if unknown:
        raise ValueError(f"unknown arguments {unknown}; allowed: {', '.join(allowed)}")
    engine = {name: _read(name, given[name]) for name in _ENGINE if name in given}
    if "threshold" in given:
        engine["policy"] = _threshold(given)
    most = given.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)
    template = given.get("chat_template_kwargs", {})
    if not isinstance(template, Mapping):
        raise ValueError(f"chat_template_kwargs must be a dict, got {template!r}")
    field = given.get("question_field")
    if field is not None:
        check_text("question_field", field)
    return ModelArguments(
        engine=engine,
        sampling=SamplingParams(
            temperature=0.0,
            **{name: _read(name, given[name]) for name in _SAMPLING if name in given},
        ),
        max_gen_toks=check_integer("max_gen_toks", most, 1),
        question_field=field,
        chat_template_kwargs=template,
    )


def sampling_params(gen_kwargs: Mapping[str, Any], defaults: ModelArguments) -> SamplingParams:
    """The parameters of one request, from the `generation_kwargs` of its task.

    `until`, `do_sample` and the harness's four names for the most tokens are its own; all others
    are those of `SamplingParams`, policy and selection as text. Without `do_sample`, a temperature
    above 0 samples, and without both the output is greedy.

    Raises:
        ValueError: one is unknown or not allowed.
    """
    rest = dict(gen_kwargs)
    given = [count for name in _MOST_TOKENS if (count := rest.pop(name, None)) is not None]
    until = rest.pop("until", None)
    if isinstance(until, list | tuple):
        until = [stop for stop in until if stop]  # the harness takes an empty one for none
    do_sample = rest.pop("do_sample", bool(rest.get("temperature")))
    temperature = rest.pop("temperature", 1.0)
    if "threshold" in rest:
        rest["policy"] = _threshold(rest)
        del rest["threshold"]
    unknown = sorted(set(rest) - _FIELDS)
    if unknown:
        names = sorted({"until", "do_sample", "threshold", *_MOST_TOKENS, *_FIELDS})
        raise ValueError(
            f"unknown generation_kwargs {unknown}; this model takes {', '.join(names)}"
        )
    base = {name: getattr(defaults.sampling, name) for name in _SAMPLING}
    return SamplingParams(
        **base
        | {
            "temperature": temperature if do_sample else 0.0,
            "max_tokens": given[0] if given else defaults.max_gen_toks,
            "stop": until or None,
            **{name: _read(name, value) for name, value in rest.items()},
        }
    )


def _threshold(given: Mapping[str, Any]) -> Threshold:
    if "policy" in given:
        raise ValueError("policy and threshold exclude each other; leave one out")
    return Threshold(given["threshold"])


def _with_newlines(value: Any) -> Any:
    r"""Text in which `\n` stands for a newline, for a command line can hardly write one."""
    return value.replace("\\n", "\n") if isinstance(value, str) else value


def _step_delimiters(value: Any) -> Any:
    listed = value if isinstance(value, list | tuple) else [value]
    found = [_with_newlines(item) for item in listed]
    return None if found in ([None], ["None"]) else found[0] if len(found) == 1 else found


def _if_text(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda value: parse(value) if isinstance(value, str) else value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **{name: _if_text(parse) for name, parse in TEXT_FORMS.items()},
    "scorer": _if_text(parse_scorer),
    "step_delimiters": _step_delimiters,
    "prm_separator": _with_newlines,
}


def _read(name: str, value: Any) -> Any:
    reader = _READERS.get(name)
    return value if reader is None else reader(value)
