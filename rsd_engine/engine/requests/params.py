"""Sampling parameters of prompts: those that were given, or the defaults of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rsd_engine.sampling_params import SamplingParams

logger = logging.getLogger("rsd_engine")

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def default_params(generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a request without parameters gets: the checkpoint's own sampling defaults.

    One that is not allowed is left out with a warning: it is no reason not to start.
    """
    found = {}
    for name in _SAMPLING_DEFAULTS:
        value = generation_config.get(name)
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except ValueError as error:
            logger.warning("generation_config.json: %s; ignored", error)
        else:
            found[name] = value
    if generation_config.get("do_sample") is False:
        found["temperature"] = 0.0
    return SamplingParams(**found)


def changed_fields(params: SamplingParams) -> str:
    """The fields that differ from the library's defaults, as `name=value, ...`."""
    plain = SamplingParams()
    values = ((field.name, getattr(params, field.name)) for field in fields(params))
    return ", ".join(f"{k}={v!r}" for k, v in values if v != getattr(plain, k))


def params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams
) -> list[SamplingParams]:
    """The parameters of each of `count` prompts, from one for all, one for each, or None.

    Raises:
        ValueError: `params` is none of these, or has another count.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * count
    if not isinstance(params, list | tuple):
        raise ValueError(
            "sampling_params must be SamplingParams or a list of them, one per prompt, "
            f"got {params!r}"
        )
    if len(params) != count:
        raise ValueError(
            f"sampling_params must have one entry per prompt ({count}), got {len(params)}"
        )
    wrong = [p for p in params if not isinstance(p, SamplingParams)]
    if wrong:
        raise ValueError(f"sampling_params must hold SamplingParams, got {wrong[0]!r}")
    return list(params)
