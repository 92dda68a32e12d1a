"""The fields of a request as `SamplingParams`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from rsd_engine.sampling_params import OWN_FIELDS, TEXT_FORMS, SamplingParams
from rsd_engine.server.errors import ApiError
from rsd_engine.server.protocol.requests import ChatRequest, CompletionRequest, SamplingFields
from rsd_engine.steps.policies import Threshold

COMPLETION_TOKENS = 16  # of /v1/completions, where the request names no number, as OpenAI has it
_OWN_NAMES = {field.name for field in fields(SamplingParams)}


def chat_params(request: ChatRequest, default: SamplingParams, most_samples: int) -> SamplingParams:
    """The parameters of a chat; without `max_tokens` it may fill the context.

    Raises:
        ApiError: a field is not allowed.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    most = request.max_completion_tokens
    changed: dict[str, Any] = {"max_tokens": request.max_tokens if most is None else most}
    if request.logprobs:
        changed["logprobs"] = request.top_logprobs or 0
    return _params(request, default, changed, most_samples)


def completion_params(
    request: CompletionRequest,
    default: SamplingParams,
    most_samples: int,
    modes: Collection[str],
) -> SamplingParams:
    """The parameters of a completion; of one that is to be echoed alone, with a token to drop.

    A prompt that is echoed for its log-probabilities, with a token at most, is the target's work:
    there is no step to score, and the PRM may not hold what the target does.

    Raises:
        ApiError: a field is not allowed.
    """
    if request.suffix:
        raise ApiError(400, "suffix is not supported; leave it out", "suffix")
    if request.best_of not in (None, request.n or 1):
        raise ApiError(400, "best_of must equal n; leave it out", "best_of")
    most = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if echoes_alone(request):
        most = 1
    changed: dict[str, Any] = {"max_tokens": most, "logprobs": request.logprobs}
    if request.echo and request.logprobs is not None:
        changed["prompt_logprobs"] = request.logprobs
        if most <= 1 and "target" in modes:
            default = replace(
                default, mode="target", speculate=None, num_guesses=None, step_candidates=1,
                select=None,
            )  # fmt: skip
    return _params(request, default, changed, most_samples)


def echoes_alone(request: CompletionRequest) -> bool:
    """Whether nothing but the prompt is to come back."""
    return bool(request.echo) and request.max_tokens == 0


def _params(
    request: SamplingFields, default: SamplingParams, changed: dict[str, Any], most_samples: int
) -> SamplingParams:
    if (request.n or 1) > most_samples:
        raise ApiError(400, f"n must be at most {most_samples} here, got {request.n}", "n")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    given = {
        name: value
        for name in _OWN_NAMES - {*OWN_FIELDS, "logprobs", "max_tokens"}
        if (value := getattr(request, name, None)) is not None
    }
    try:
        return replace(default, **given, **changed, **_rsd_fields(request))
    except ValueError as error:
        raise ApiError(400, str(error), _named_field(str(error))) from None


def _rsd_fields(request: SamplingFields) -> dict[str, Any]:
    own = request.rsd
    if own is None:
        return {}
    found: dict[str, Any] = {
        name: TEXT_FORMS[name](value) if name in TEXT_FORMS else value
        for name in OWN_FIELDS
        if (value := getattr(own, name)) is not None
    }
    if own.threshold is None:
        return found
    if own.policy is not None:
        raise ApiError(400, "give either rsd.policy or rsd.threshold", "rsd")
    return {**found, "policy": Threshold(own.threshold)}


def _named_field(message: str) -> str | None:
    """The field that an error of `SamplingParams` begins with."""
    name = message.split(maxsplit=1)[0].rstrip(":") if message else ""
    return name if name in _OWN_NAMES else None
