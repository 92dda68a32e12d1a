"""The options that commands share: names, help texts and the panels that group them.

A default of None means "not given": the config file or the library's own default applies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsd_engine.steps.policies import POLICY_FORMS
from rsd_engine.steps.scorers import SCORER_FORMS
from rsd_engine.steps.selection import SELECTION_FORMS

_MODELS, _MEMORY = "Models", "Device and memory"
_STEPS, _SAMPLING, _FILES = "Steps and policy", "Sampling and limits", "Input and output"
MAX_PROBLEMS = 10_000  # of the demo
MAX_COUNT = 2**31 - 1  # of anything that is counted in int32


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Draft = Annotated[
    str | None, option(_MODELS, "Draft model: folder, hub id or GGUF file.", "--draft")
]
Target = Annotated[str | None, option(_MODELS, "Target model, likewise, or a URL.", "--target")]
Prm = Annotated[str | None, option(_MODELS, "Process reward model, as the target.", "--prm")]
ScorerOption = Annotated[
    str | None,
    option(
        _MODELS,
        f"What scores the steps in place of a PRM: {SCORER_FORMS}",
        "--scorer",
    ),
]
PrmFormat = Annotated[
    str | None,
    option(
        _MODELS,
        "How the PRM is fed: the name of a family, or JSON of a format of your own (default: what "
        "its checkpoint tells)",
        "--prm-format",
    ),
]
PrmSeparator = Annotated[
    str | None,
    option(
        _MODELS,
        r"What follows every step in the PRM's context, \n allowed (default: its family's)",
        "--prm-separator",
    ),
]
Revision = Annotated[str | None, option(_MODELS, "Branch, tag or commit of hub ids.", "--revision")]
HfOverrides = Annotated[
    str | None,
    option(
        _MODELS,
        'JSON of fields of config.json to replace, by role: {"target": {"rope_scaling": ...}}',
        "--hf-overrides",
    ),
]
QuantizationOption = Annotated[
    str | None,
    option(
        _MODELS,
        "int8 or int4, to which plain weights are rounded as they are loaded, or fp8 on a GPU; or "
        "by role, such as "
        "draft=int8,target=int4 (default: none)",
        "--quantization",
    ),
]

Device = Annotated[
    str | None, option(_MEMORY, "auto, cpu, cuda, cuda:1, ... (default: auto)", "--device")
]
Dtype = Annotated[
    str | None, option(_MEMORY, "auto, float32, bfloat16 or float16 (default: auto)", "--dtype")
]
MaxNumSeqs = Annotated[
    int | None, option(_MEMORY, "Requests that run at once (default: 16)", "--max-num-seqs")
]
MaxModelLen = Annotated[
    int | None,
    option(
        _MEMORY,
        "Most tokens of prompt and output (default: what the models allow)",
        "--max-model-len",
    ),
]
KvCacheMemory = Annotated[
    str | None,
    option(
        _MEMORY,
        "Memory for keys and values, such as 2GiB (default: from what is available)",
        "--kv-cache-memory",
    ),
]
GpuMemoryUtilization = Annotated[
    float | None,
    option(_MEMORY, "Share of the GPU's memory to use (default: 0.9)", "--gpu-memory-utilization"),
]

Executor = Annotated[
    str | None,
    option(
        _MEMORY,
        "How the loop runs: auto, eager, host-graphs or device-loop (default: auto)",
        "--executor",
    ),
]

MaxGuesses = Annotated[
    int | None,
    option(
        _MEMORY,
        "Guessed tokens that one pass of the target may verify, for --speculate (default: 0)",
        "--max-guesses",
    ),
]

EnablePrefixCaching = Annotated[
    bool | None,
    option(
        _MEMORY,
        "Find the K and V of earlier requests again by their tokens (default: yes)",
        "--enable-prefix-caching/--no-enable-prefix-caching",
    ),
]

PolicyOption = Annotated[
    str | None,
    option(
        _STEPS,
        f"{POLICY_FORMS} (default: the threshold of the PRM's family)",
        "--policy",
    ),
]
Mode = Annotated[
    str | None,
    option(_STEPS, "rsd, target or draft (default: rsd, if all models are given)", "--mode"),
]
StepDelimiter = Annotated[
    list[str] | None,
    option(
        _STEPS,
        r"Text that ends a step, \n allowed; may be repeated (default: \n\n with a PRM)",
        "--step-delimiter",
    ),
]
StepEnds = Annotated[
    str | None,
    option(
        _STEPS,
        "What the models read at the end of a kept step: the tokens of its text, or those that "
        "were written (text or tokens; default: text)",
        "--step-ends",
    ),
]
NoSteps = Annotated[bool, option(_STEPS, "Plain decoding without steps.", "--no-steps")]
MaxStepTokens = Annotated[
    int | None, option(_STEPS, "Most tokens per step (default: no limit)", "--max-step-tokens")
]
MaxSteps = Annotated[int | None, option(_STEPS, "Most kept steps (default: 100)", "--max-steps")]

PrmOverflow = Annotated[
    str | None,
    option(
        _STEPS,
        "When the PRM's context is full: stop, target or accept (default: stop)",
        "--prm-overflow",
    ),
]

Speculate = Annotated[
    str | None,
    option(
        _STEPS,
        "Who guesses what the target will write: draft, ngram, rejected or rejected+draft "
        "(default: nobody)",
        "--speculate",
    ),
]
NumGuesses = Annotated[
    int | None,
    option(
        _STEPS,
        "Tokens guessed at a time (default: as many as pay; 8 with ngram)",
        "--num-guesses",
    ),
]

StepCandidates = Annotated[
    int | None,
    option(
        _STEPS,
        "Drafts of every step, scored side by side; each takes a slot (default: 1)",
        "--step-candidates",
    ),
]
Select = Annotated[
    str | None,
    option(_STEPS, f"Which of them is taken: {SELECTION_FORMS} (default: best)", "--select"),
]

N = Annotated[int | None, option(_SAMPLING, "Samples per prompt (default: 1)", "--n", "-n")]
Temperature = Annotated[
    float | None,
    option(_SAMPLING, "0 is greedy (default: the checkpoint's, else 1)", "--temperature"),
]
TopP = Annotated[
    float | None,
    option(_SAMPLING, "Sample from the likeliest tokens up to this probability.", "--top-p"),
]
TopK = Annotated[
    int | None, option(_SAMPLING, "Sample from this many tokens; 0 takes all.", "--top-k")
]
MinP = Annotated[
    float | None,
    option(_SAMPLING, "Drop tokens below this share of the likeliest one.", "--min-p"),
]
RepetitionPenalty = Annotated[
    float | None, option(_SAMPLING, "Values above 1 avoid repetition.", "--repetition-penalty")
]
PresencePenalty = Annotated[
    float | None,
    option(_SAMPLING, "Values above 0 avoid tokens of the output.", "--presence-penalty"),
]
FrequencyPenalty = Annotated[
    float | None,
    option(_SAMPLING, "The same, for every time that a token is there.", "--frequency-penalty"),
]
LogitBias = Annotated[
    str | None,
    option(_SAMPLING, 'JSON of token ids and what to add, such as {"13": -5}.', "--logit-bias"),
]
AllowedTokenIds = Annotated[
    list[int] | None,
    option(
        _SAMPLING,
        "Token id that may be sampled (default: all); may be repeated.",
        "--allowed-token-id",
    ),
]
BadWords = Annotated[
    list[str] | None,
    option(_SAMPLING, r"Text not to write, \n allowed; may be repeated.", "--bad-word"),
]
Seed = Annotated[
    int | None,
    option(
        _SAMPLING,
        "Seed; each line of a file gets its own from it (default: 0 for a file, else random)",
        "--seed",
    ),
]
MaxTokens = Annotated[
    int | None, option(_SAMPLING, "Most output tokens (default: 2048)", "--max-tokens")
]
Stop = Annotated[
    list[str] | None,
    option(_SAMPLING, r"Text that ends the output, \n allowed; may be repeated.", "--stop"),
]

MinTokens = Annotated[
    int | None,
    option(_SAMPLING, "Nothing ends the output before this many tokens.", "--min-tokens"),
]
StopTokenIds = Annotated[
    list[int] | None,
    option(_SAMPLING, "Token id that ends the output; may be repeated.", "--stop-token-id"),
]
IgnoreEos = Annotated[
    bool | None,
    option(_SAMPLING, "Go on after end-of-text ids (default: no)", "--ignore-eos/--no-ignore-eos"),
]
IncludeStop = Annotated[
    bool | None,
    option(
        _SAMPLING,
        "Leave what ended the output in its text (default: no)",
        "--include-stop-str-in-output/--no-include-stop-str-in-output",
    ),
]
SkipSpecialTokens = Annotated[
    bool | None,
    option(
        _SAMPLING,
        "Leave special tokens out of the text (default: yes)",
        "--skip-special-tokens/--no-skip-special-tokens",
    ),
]
Logprobs = Annotated[
    int | None,
    option(_SAMPLING, "Report this many likely tokens at each position, in JSON.", "--logprobs"),
]
PromptLogprobs = Annotated[
    int | None,
    option(_SAMPLING, "The same for the tokens of the prompt.", "--prompt-logprobs"),
]
TruncatePromptTokens = Annotated[
    int | None,
    option(
        _SAMPLING,
        "Read the last tokens of the prompt only (default: all)",
        "--truncate-prompt-tokens",
    ),
]

Input = Annotated[
    Path | None,
    option(
        _FILES,
        'JSONL file, or "-" for stdin. Each line is an object with "prompt", "question", '
        '"messages" (maybe with "question") or "prompt_token_ids", and maybe "id" and "params".',
        "--input",
        "-i",
    ),
]
Output = Annotated[
    Path | None,
    option(
        _FILES,
        'JSONL file of results, written as they finish (default: "-" for stdout). If it exists, '
        "its run is resumed.",
        "--output",
        "-o",
    ),
]
Overwrite = Annotated[
    bool, option(_FILES, "Start again, even if the output file has results.", "--overwrite")
]
Chat = Annotated[
    bool | None,
    option(
        _FILES,
        "Apply the chat template, or take prompts as they are (default: chat, if the tokenizer "
        "has a template)",
        "--chat/--raw",
    ),
]
System = Annotated[str | None, option(_FILES, "System message of the chat.", "--system")]
ChatTemplate = Annotated[
    Path | None,
    option(_FILES, "File of the chat template (default: the tokenizer's)", "--chat-template"),
]
ChatTemplateKwargs = Annotated[
    str | None,
    option(
        _FILES,
        'Variables of the chat template as JSON, such as {"enable_thinking": false}.',
        "--chat-template-kwargs",
    ),
]
Tools = Annotated[
    Path | None, option(_FILES, "JSON file of tools for the chat template.", "--tools")
]
ShowSteps = Annotated[
    bool | None, option(_FILES, "Show each step as it is decided.", "--show-steps/--text-only")
]
Json = Annotated[
    bool | None, option(_FILES, "Print the result of one prompt as JSON.", "--json/--no-json")
]
ConfigFile = Annotated[
    Path | None,
    option(
        _FILES,
        r"TOML file of defaults, in tables \[engine], \[sampling] and \[generate].",
        "--config",
    ),
]
Verbose = Annotated[
    bool | None,
    option(
        _FILES,
        "Log to stderr what is loaded and what fits, and show all of an error.",
        "--verbose",
        "-v",
    ),
]
