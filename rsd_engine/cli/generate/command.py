"""`rsd generate`: its options, and which of its ways of running they ask for."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.errors import UsageError, clean_errors

if TYPE_CHECKING:
    from rsd_engine import Engine

HELP = (
    "Answer a prompt, or a JSONL file of prompts.\n\n"
    "Draft, target and reward model together run reward-guided speculative decoding; a draft or "
    "target given alone writes alone. To resume an interrupted run over a file, give the same "
    "command again. Results go to stdout or the output file, logs to stderr."
)


@dataclass(frozen=True)
class GenerateOptions:
    """The command line; None, or an empty list, stands for an option that was not given."""

    prompt: Annotated[
        str | None, typer.Argument(help='The prompt, or "-" to read it from stdin.')
    ] = None
    draft: o.Draft = None
    target: o.Target = None
    prm: o.Prm = None
    revision: o.Revision = None
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
    max_step_tokens: o.MaxStepTokens = None
    max_steps: o.MaxSteps = None
    n: o.N = None
    temperature: o.Temperature = None
    top_p: o.TopP = None
    top_k: o.TopK = None
    min_p: o.MinP = None
    repetition_penalty: o.RepetitionPenalty = None
    seed: o.Seed = None
    max_tokens: o.MaxTokens = None
    min_tokens: o.MinTokens = None
    stop: o.Stop = None
    stop_token_ids: o.StopTokenIds = None
    ignore_eos: o.IgnoreEos = None
    include_stop_str_in_output: o.IncludeStop = None
    skip_special_tokens: o.SkipSpecialTokens = None
    logprobs: o.Logprobs = None


def generate(**given: Any) -> None:
    """See HELP."""
    with clean_errors():
        code = _run(GenerateOptions(**given))
    raise typer.Exit(code)


# Typer reads the options of a command from its signature; here the dataclass has them.
_HINTS = get_type_hints(GenerateOptions, include_extras=True)
generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        parameter.replace(annotation=_HINTS[name])
        for name, parameter in inspect.signature(GenerateOptions).parameters.items()
    ]
)


def _run(options: GenerateOptions) -> int:
    from rsd_engine.cli.generate.settings import run_settings, show_settings

    config = read_config(options.config)
    settings = run_settings(options, config)
    _check_files(options)
    if options.input is not None:
        from rsd_engine.cli.generate.file import run_file

        return run_file(settings, options.input, options.output, overwrite=options.overwrite)
    from rsd_engine.cli.generate.one import read_prompt, run_one

    assert options.prompt is not None
    show = show_settings(options, config)
    prompt = read_prompt(options.prompt)
    return run_one(settings, prompt, show_steps=show.show_steps, as_json=show.json)


def _check_files(options: GenerateOptions) -> None:
    if (options.prompt is None) == (options.input is None):
        raise UsageError("give either a prompt (- for stdin) or --input FILE")
    if options.input is None and options.output is not None:
        raise UsageError("--output needs --input; the answer to one prompt goes to stdout")
    if options.overwrite and options.output is None:
        raise UsageError("--overwrite needs --output")
    if options.input is not None and (options.show_steps or options.json is False):
        raise UsageError("--show-steps and --no-json are for one prompt; a file gives JSON lines")


def make_engine(arguments: dict[str, Any], *, verbose: bool) -> Engine:
    """Makes an engine with these arguments; with `verbose` its log goes to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rsd_engine").setLevel(logging.INFO if verbose else logging.WARNING)
    from rsd_engine import Engine

    return Engine(**arguments)
