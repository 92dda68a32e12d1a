"""The decoding loop that `generate` of transformers calls: here it is a request to an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from rsd_engine import Engine, FinishedEvent, RequestOutput, SamplingParams, Threshold
from rsd_engine.integrations.transformers.engines import Engines, Models, Source
from rsd_engine.integrations.transformers.results import RewardGuidedOutput, sequences
from rsd_engine.integrations.transformers.settings import PromptShape, read_settings
from rsd_engine.sampling_params import MAX_SEED
from rsd_engine.steps.policies import Policy, parse_policy

ENGINES = Engines()
_PREPARED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def reward_guided(
    model: nn.Module,
    input_ids: Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    generation_config: GenerationConfig,
    *,
    draft_model: Source = None,
    prm: Source = None,
    threshold: float | None = None,
    policy: Policy | str | None = None,
    question: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    draft_tokenizer: Any = None,
    prm_tokenizer: Any = None,
    engine_options: Mapping[str, Any] | None = None,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor | RewardGuidedOutput:
    """Decodes by Reward-Guided Speculative Decoding, with `model` as the target.

    >>> model.generate(**inputs, custom_generate=reward_guided, draft_model=draft, prm=prm)

    transformers hands neither `streamer` nor `tokenizer` to a callable: bind them, by
    `functools.partial(reward_guided, streamer=streamer)`, or use `generate` of this package.

    Args:
        model: the target.
        input_ids: [rows, tokens] int64; rows may be padded.
        logits_processor: those that `SamplingParams` has fields for, others are refused.
        stopping_criteria: likewise.
        generation_config: as transformers has prepared it.
        draft_model: the small model: in memory, or what `Engine` takes.
        prm: the process reward model, likewise; left out where `engine_options` has a scorer.
        threshold: keep steps from this reward; by default that of the PRM's family.
        policy: in place of a threshold: a policy, or its text such as "logistic:10:0.7".
        question: what the PRM reads as the problem, one for all rows or one for each; None: the
            text of the prompt.
        tokenizer: of the target; None reads that of the checkpoint it was loaded from.
        draft_tokenizer: of a draft in memory, likewise.
        prm_tokenizer: of a PRM in memory, likewise.
        engine_options: more arguments of `Engine`, such as {"max_num_seqs": 4}.
        streamer: gets the prompt, then kept tokens; rejected steps by its `put_draft`, if it has
            one. Of one row only.
        model_kwargs: what transformers prepared for its own loop; nothing else is allowed.

    Returns:
        [rows, tokens] int64, or with `return_dict_in_generate` an output that has the steps too.

    Raises:
        ValueError: something is asked for that is not supported, or models do not go together;
            nothing was started.
        RuntimeError: a row failed.
    """
    if draft_model is None:
        raise ValueError("draft_model is missing; give the small model that writes first")
    _check_model_kwargs(model_kwargs)
    rows = _without_padding(input_ids, model_kwargs.get("attention_mask"))
    width = input_ids.shape[1]
    shape = PromptShape(width, [width - len(row) for row in rows])
    params = read_settings(generation_config, logits_processor, stopping_criteria, shape)
    params = replace(params, policy=_policy(threshold, policy))
    prompts = _prompts(rows, question)
    if streamer is not None and len(prompts) > 1:
        raise ValueError(f"a streamer is for one row, got {len(prompts)}; leave it out")
    models = Models(draft_model, model, prm, draft_tokenizer, tokenizer, prm_tokenizer)
    engine = ENGINES.find(models, engine_options or {})
    # As other decoding does, by torch's generator: torch.manual_seed makes it repeatable.
    seeds = torch.randint(MAX_SEED, (len(prompts),)).tolist()
    each = [replace(params, seed=seed) for seed in seeds]
    if streamer is None:
        results = engine.generate(prompts, each, use_tqdm=False)
    else:
        results = [_stream(engine, prompts[0], each[0], input_ids, streamer)]
    found = sequences(input_ids, results, _pad_token_id(generation_config))
    if generation_config.return_dict_in_generate:
        return RewardGuidedOutput(sequences=found, results=tuple(results))
    return found


def _stream(
    engine: Engine,
    prompt: Mapping[str, Any],
    params: SamplingParams,
    input_ids: Tensor,
    streamer: Any,
) -> RequestOutput:
    """The result, while the streamer gets its steps; it is told the end after an error too."""
    streamer.put(input_ids.cpu())
    try:
        for event in engine.stream(prompt, params):
            if isinstance(event, FinishedEvent):
                return event.output
            ids = torch.tensor(event.token_ids)
            if event.kind == "kept":
                streamer.put(ids)
            elif hasattr(streamer, "put_draft"):
                streamer.put_draft(ids)
    finally:
        streamer.end()
    raise RuntimeError("the request was aborted by someone else")


def _without_padding(input_ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    rows: list[list[int]] = input_ids.tolist()
    if mask is None:
        return rows
    return [
        [token for token, is_kept in zip(row, kept, strict=True) if is_kept]
        for row, kept in zip(rows, mask.tolist(), strict=True)
    ]


def _prompts(rows: list[list[int]], question: str | Sequence[str] | None) -> list[dict[str, Any]]:
    if question is None:
        return [{"prompt_token_ids": row} for row in rows]
    questions = [question] * len(rows) if isinstance(question, str) else list(question)
    if len(questions) != len(rows):
        raise ValueError(f"question must be one text, or {len(rows)}, got {len(questions)}")
    return [
        {"prompt_token_ids": row, "question": asked}
        for row, asked in zip(rows, questions, strict=True)
    ]


def _policy(threshold: float | None, policy: Policy | str | None) -> Policy | None:
    if threshold is not None and policy is not None:
        raise ValueError("threshold and policy exclude each other; leave one out")
    if threshold is not None:
        return Threshold(threshold)
    return parse_policy(policy) if isinstance(policy, str) else policy


def _check_model_kwargs(given: Mapping[str, Any]) -> None:
    unknown = sorted(n for n, value in given.items() if n not in _PREPARED and value is not None)
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be used with RSD; leave it out")
    cache = given.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise ValueError(
            f"past_key_values holds {cache.get_seq_length()} tokens; the engine has pages of its "
            "own, leave it out and pass the whole prompt"
        )


def _pad_token_id(config: GenerationConfig) -> int:
    """As transformers has it: the first end-of-text id where no padding is named."""
    for given in (config.pad_token_id, config.eos_token_id):
        if given is not None:
            return int(given[0] if isinstance(given, list) else given)
    return 0
