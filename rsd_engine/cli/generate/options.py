"""The options of `rsd generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rsd_engine.cli import options as o


@dataclass(frozen=True)
class GenerateOptions:
    """The command line; None, or an empty list, stands for an option that was not given."""

    prompt: Annotated[
        str | None, typer.Argument(help='The prompt, or "-" to read it from stdin.')
    ] = None
    draft: o.Draft = None
    target: o.Target = None
    prm: o.Prm = None
    scorer: o.ScorerOption = None
    prm_format: o.PrmFormat = None
    prm_separator: o.PrmSeparator = None
    revision: o.Revision = None
    hf_overrides: o.HfOverrides = None
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
    config: o.ConfigFile = None
    verbose: o.Verbose = None
    device: o.Device = None
    dtype: o.Dtype = None
    max_num_seqs: o.MaxNumSeqs = None
    max_model_len: o.MaxModelLen = None
    kv_cache_memory: o.KvCacheMemory = None
    gpu_memory_utilization: o.GpuMemoryUtilization = None
    executor: o.Executor = None
    policy: o.PolicyOption = None
    mode: o.Mode = None
    step_delimiter: o.StepDelimiter = None
    no_steps: o.NoSteps = False
    step_ends: o.StepEnds = None
    max_step_tokens: o.MaxStepTokens = None
    max_steps: o.MaxSteps = None
    prm_overflow: o.PrmOverflow = None
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
