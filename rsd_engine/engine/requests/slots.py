"""Turns a prompt and its sampling parameters into the numbers of a slot, and checks them."""

from __future__ import annotations

from dataclasses import replace

from rsd_engine.arguments import shown
from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.prompts import ResolvedPrompt, check_ids
from rsd_engine.engine.requests.rules import (
    RequestRules,
    WriterTokens,
    mode_of,
    selection_of,
    speculation_of,
)
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.automaton import build_automaton
from rsd_kernels.state.enums import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_STOP_STATES,
    MAX_STOP_TOKENS,
    Mode,
    Role,
)

_MODES = {"rsd": Mode.RSD, "draft": Mode.DRAFT, "target": Mode.TARGET}
_OVERFLOW_MODES = {"stop": Mode.RSD, "target": Mode.TARGET, "accept": Mode.DRAFT}


def slot_request(
    prompt: ResolvedPrompt,
    params: SamplingParams,
    rules: RequestRules,
    *,
    seed: int,
    stream: bool = False,
    writer: Role | None = None,
) -> SlotRequest:
    """The first sample of a request.

    Args:
        prompt: as the writer reads it.
        stream: whether someone reads its events; a model alone then tells every token.
        writer: whose view of the request it is; None for all of them, where they share their
            vocabulary.

    Raises:
        ValueError: the prompt does not fit or has unknown ids, the mode needs models that are not
            loaded, or there are too many stop strings or stop ids.
    """
    mode = mode_of(params, rules)
    if rules.check_remote and mode != "draft":
        rules.check_remote(params)
    tokens = rules.writers[rules.main if writer is None else writer]
    check_ids(prompt.token_ids, tokens.num_ids)
    prm_prompt: tuple[int, ...] = ()
    form = rules.prm_format if mode == "rsd" else None
    if form is not None:
        as_written = form.as_written
        prm_prompt = prompt.token_ids if as_written else tuple(form.prompt_ids(prompt.question))
    length = len(prompt.token_ids)
    room, prm_limits = _room(length, len(prm_prompt), params, rules)
    if mode == "rsd" and rules.separate:
        # Of both contexts; whoever writes is held to his own, and the PRM's may become full.
        room, prm_limits = 2 * rules.max_model_len, False
    policy = params.policy or rules.policy
    select = selection_of(params, mode, rules)
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    return SlotRequest(
        prompt=prompt.token_ids,
        prm_prompt=prm_prompt,
        mode=_MODES[mode],
        length_limit=length + max_tokens,
        max_steps=min(params.max_steps, max_tokens + 1),  # + 1: out of reach, a step has a token
        max_step_tokens=min(params.max_step_tokens or max_tokens, max_tokens),
        min_length=length + min(params.min_tokens, max_tokens),
        delimiters=rules.delimiters,
        stops=build_automaton(params.stop_strings, MAX_STOP_STATES, "stop"),
        stop_tokens=_stop_tokens(params, tokens),
        temperature=params.temperature,
        top_k=min(max(0, params.top_k), tokens.num_ids),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=seed,
        sample_index=0,
        num_logprobs=-1 if params.logprobs is None else params.logprobs,
        policy=policy.columns(),
        overflow_mode=_OVERFLOW_MODES[params.prm_overflow],
        prm_limits=prm_limits and (params.max_tokens is None or params.max_tokens > room),
        prm_step_ids=form.step_ids if form else 0,
        prm_transient=form.num_transient if form else 0,
        stream_tokens=stream and mode != "rsd",
        prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        biases=_biases(params, tokens),
        only_biased=params.allowed_token_ids is not None,
        bad_words=_bad_words(params, tokens),
        speculation=speculation_of(params, mode, rules),
        guess_tokens=params.num_guesses or 0,
        max_context=rules.max_model_len,
        step_candidates=params.step_candidates,
        select=select,
    )


def sample_request(first: SlotRequest, sample: int) -> SlotRequest:
    """Another sample of a request; only the first one reads the prompt's log-probabilities."""
    target = first.target and sample_request(first.target, sample)
    return replace(first, sample_index=sample, prompt_logprobs=-1, target=target)


def truncated(prompt: ResolvedPrompt, params: SamplingParams) -> ResolvedPrompt:
    """The prompt's last tokens, if the request wants no more; its text stays as it was given."""
    if params.truncate_prompt_tokens is None:
        return prompt
    return replace(prompt, token_ids=prompt.token_ids[-params.truncate_prompt_tokens :])


def _room(
    length: int, prm_length: int, params: SamplingParams, rules: RequestRules
) -> tuple[int, bool]:
    """Output tokens that fit the contexts, and whether it is the PRM's that holds no more.

    Each step adds a few ids to the PRM's. A request may go on when that is full.
    """
    room = rules.max_model_len - length
    if room < 1:
        raise ValueError(
            f"prompt has {length} tokens; with max_model_len={rules.max_model_len} it may have at "
            f"most {rules.max_model_len - 1}. Shorten it or raise max_model_len"
        )
    if not prm_length:
        return room, False
    assert rules.prm_format is not None
    added = rules.prm_format.step_ids
    prm_room = rules.prm_max_len - prm_length - rules.prm_format.num_transient
    prm_room = max(prm_room - params.max_steps * added, prm_room // (1 + added))
    if prm_room < 1:
        raise ValueError(
            f"the question takes {prm_length} tokens of the PRM's context, which holds "
            f"{rules.prm_max_len}; at least one step must fit too. Shorten the question"
        )
    if params.prm_overflow != "stop" or room <= prm_room:
        return room, False
    return prm_room, True


def _stop_tokens(params: SamplingParams, tokens: WriterTokens) -> tuple[int, ...]:
    eos = frozenset() if params.ignore_eos else tokens.eos_ids
    asked = params.stop_token_ids or ()
    beyond = [i for i in asked if i >= tokens.num_ids]
    if beyond:
        raise ValueError(
            f"stop_token_ids must be in [0, {tokens.num_ids - 1}], the vocabulary, got {beyond[0]}"
        )
    # A special token has no bytes that the search for stop strings could see.
    special = [tokens.special_ids[s] for s in params.stop_strings if s in tokens.special_ids]
    found = sorted(eos | {*asked, *special})
    if len(found) > MAX_STOP_TOKENS:
        raise ValueError(
            f"stop_token_ids and the model's end-of-text ids may be {MAX_STOP_TOKENS} in all, "
            f"got {len(found)}"
        )
    return tuple(found)


def _biases(params: SamplingParams, tokens: WriterTokens) -> tuple[tuple[int, float], ...]:
    """The ids that may be sampled, if only some may, with their biases; or those with a bias."""
    bias, allowed = params.logit_bias or {}, params.allowed_token_ids
    for name, ids in (("logit_bias", bias), ("allowed_token_ids", allowed or ())):
        unknown = [i for i in ids if i >= tokens.num_ids]
        if unknown:
            raise ValueError(f"{name} must have ids in [0, {tokens.num_ids - 1}], got {unknown[0]}")
    if allowed is None:
        return tuple(bias.items())
    return tuple((token, bias.get(token, 0.0)) for token in allowed)


def _bad_words(params: SamplingParams, tokens: WriterTokens) -> tuple[tuple[int, ...], ...]:
    """Each word as tokens; also with a space before it where that makes it another first token."""
    found: dict[tuple[int, ...], None] = {}
    for word in params.bad_words or ():
        plain, spaced = (tuple(tokens.encode(space + word.lstrip())) for space in ("", " "))
        if not plain:
            raise ValueError(f"bad_words has {shown(word)}, which is no token of the vocabulary")
        if len(plain) > MAX_BAD_WORD_TOKENS:
            raise ValueError(
                f"a word of bad_words may have {MAX_BAD_WORD_TOKENS} tokens, got {shown(word)} of "
                f"{len(plain)}. Give a shorter part of it"
            )
        found[plain] = None
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            found[spaced] = None
    if len(found) > MAX_BAD_WORDS:
        raise ValueError(
            f"bad_words may be {MAX_BAD_WORDS} token sequences, a word being one or two of them, "
            f"got {len(found)}. Give fewer words"
        )
    return tuple(found)
