"""The options of `rsd generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli.engine_options import EngineOptions


@dataclass(frozen=True)
class GenerateOptions(EngineOptions):
    """The command line; None, or an empty list, stands for an option that was not given."""

    prompt: Annotated[
        str | None, typer.Argument(help='The prompt, or "-" to read it from stdin.')
    ] = None
    input: o.Input = None
    output: o.Output = None
    overwrite: o.Overwrite = False
    chat: o.Chat = None
    system: o.System = None
    chat_template: o.ChatTemplate = None
    chat_template_kwargs: o.ChatTemplateKwargs = None
    tools: o.Tools = None
    show_steps: o.ShowSteps = None
    json: o.Json = None
    mode: o.Mode = None
    max_step_tokens: o.MaxStepTokens = None
    max_steps: o.MaxSteps = None
    prm_overflow: o.PrmOverflow = None
    speculate: o.Speculate = None
    num_guesses: o.NumGuesses = None
    step_candidates: o.StepCandidates = None
    select: o.Select = None
    n: o.N = None
    temperature: o.Temperature = None
    top_p: o.TopP = None
    top_k: o.TopK = None
    min_p: o.MinP = None
    repetition_penalty: o.RepetitionPenalty = None
    presence_penalty: o.PresencePenalty = None
    frequency_penalty: o.FrequencyPenalty = None
    logit_bias: o.LogitBias = None
    allowed_token_ids: o.AllowedTokenIds = None
    bad_words: o.BadWords = None
    seed: o.Seed = None
    max_tokens: o.MaxTokens = None
    min_tokens: o.MinTokens = None
    stop: o.Stop = None
    stop_token_ids: o.StopTokenIds = None
    ignore_eos: o.IgnoreEos = None
    include_stop_str_in_output: o.IncludeStop = None
    skip_special_tokens: o.SkipSpecialTokens = None
    logprobs: o.Logprobs = None
    prompt_logprobs: o.PromptLogprobs = None
    truncate_prompt_tokens: o.TruncatePromptTokens = None
