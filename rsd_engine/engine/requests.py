"""From sampling parameters to the numbers of a slot, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.models.reward.family import PrmFormat
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.automaton import ByteAutomaton, build_automaton
from rsd_engine.steps.policies import Policy
from rsd_kernels.state.enums import MAX_STOP_STATES, MAX_STOP_TOKENS, Mode

_MODES = {"rsd": Mode.RSD, "draft": Mode.DRAFT, "target": Mode.TARGET}
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class RequestRules:
    """What the engine knows that every request must obey."""

    modes: tuple[str, ...]  # allowed; the first is the default
    policy: Policy
    delimiters: ByteAutomaton
    eos_ids: frozenset[int]
    num_ids: int
    max_model_len: int
    prm_max_len: int
    prm_format: PrmFormat | None


def slot_request(
    prompt: ResolvedPrompt, params: SamplingParams, rules: RequestRules, *, seed: int, sample: int
) -> SlotRequest:
    """One sample of one request.

    Raises:
        ValueError: the prompt does not fit or has unknown ids, the mode is not available, or the
            stop strings or ids are too many.
    """
    mode = params.mode or rules.modes[0]
    if mode not in rules.modes:
        raise ValueError(
            f"mode={mode!r} needs models that were not loaded; allowed here: {list(rules.modes)}"
        )
    _check_ids(prompt, rules)
    prm_prompt: tuple[int, ...] = ()
    if mode == "rsd":
        assert rules.prm_format is not None
        prm_prompt = tuple(rules.prm_format.prompt_ids(prompt.question))
    length = len(prompt.token_ids)
    room = _room(length, len(prm_prompt), params.max_steps, rules)
    policy = params.policy or rules.policy
    max_tokens = min(params.max_tokens, room)
    return SlotRequest(
        prompt=prompt.token_ids,
        prm_prompt=prm_prompt,
        mode=_MODES[mode],
        length_limit=length + max_tokens,
        max_steps=min(params.max_steps, max_tokens + 1),  # every step has a token: never reached
        max_step_tokens=min(params.max_step_tokens or max_tokens, max_tokens),
        min_length=length + params.min_tokens,
        delimiters=rules.delimiters,
        stops=build_automaton(params.stop_strings, MAX_STOP_STATES, "stop"),
        stop_tokens=_stop_tokens(params, rules),
        temperature=params.temperature,
        top_k=min(max(0, params.top_k), rules.num_ids),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=seed,
        sample_index=sample,
        num_logprobs=-1 if params.logprobs is None else params.logprobs,
        policy=policy.columns(),
    )


def default_params(generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a request without parameters gets: the checkpoint's own sampling defaults."""
    found = {
        name: generation_config[name]
        for name in _SAMPLING_DEFAULTS
        if generation_config.get(name) is not None
    }
    if generation_config.get("do_sample") is False:
        found["temperature"] = 0.0
    try:
        return SamplingParams(**found)
    except ValueError as error:
        raise ValueError(f"the checkpoint's generation config: {error}") from error


def changed_fields(params: SamplingParams) -> str:
    """The fields that are not the library's defaults, as `name=value, ...`."""
    plain = SamplingParams()
    values = ((field.name, getattr(params, field.name)) for field in fields(params))
    return ", ".join(f"{k}={v!r}" for k, v in values if v != getattr(plain, k))


def params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams
) -> list[SamplingParams]:
    """Parameters of `count` prompts from one for all, one each or none.

    Raises:
        ValueError: `params` is neither, or has another count.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * count
    if not isinstance(params, list | tuple):
        raise ValueError(
            "sampling_params must be SamplingParams or a list of them, one a prompt; "
            f"got {params!r}"
        )
    if len(params) != count:
        raise ValueError(f"sampling_params has {len(params)} entries for {count} prompts")
    wrong = [p for p in params if not isinstance(p, SamplingParams)]
    if wrong:
        raise ValueError(f"sampling_params must hold SamplingParams, got {wrong[0]!r}")
    return list(params)


def _check_ids(prompt: ResolvedPrompt, rules: RequestRules) -> None:
    worst = max(prompt.token_ids)
    if min(prompt.token_ids) < 0 or worst >= rules.num_ids:
        raise ValueError(
            f"prompt_token_ids must be in [0, {rules.num_ids - 1}], got "
            f"{worst if worst >= rules.num_ids else min(prompt.token_ids)}"
        )


def _room(length: int, prm_length: int, max_steps: int, rules: RequestRules) -> int:
    """Output tokens that fit every context; each step adds a separator to the PRM's row."""
    room = rules.max_model_len - length
    if room < 1:
        raise ValueError(
            f"prompt has {length} tokens; with max_model_len={rules.max_model_len} it may have at "
            f"most {rules.max_model_len - 1}"
        )
    if not prm_length:
        return room
    prm_room = rules.prm_max_len - prm_length
    prm_room = max(prm_room - max_steps, prm_room // 2)
    if prm_room < 1:
        raise ValueError(
            f"the question has {prm_length} tokens in the PRM's prompt, whose context holds "
            f"{rules.prm_max_len}; at least one step must fit too"
        )
    return min(room, prm_room)


def _stop_tokens(params: SamplingParams, rules: RequestRules) -> tuple[int, ...]:
    eos = frozenset() if params.ignore_eos else rules.eos_ids
    found = sorted(eos | set(params.stop_token_ids or ()))
    if len(found) > MAX_STOP_TOKENS:
        raise ValueError(
            f"stop_token_ids and end-of-text ids are {len(found)}, at most {MAX_STOP_TOKENS}"
        )
    return tuple(found)
