"""`rsd generate`: turns options and a config file into an engine and requests."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.config_file import Config, read_config, sampling_values
from rsd_engine.cli.errors import UsageError, clean_errors

if TYPE_CHECKING:
    from rsd_engine import Engine
    from rsd_engine.cli.generate.file import RunSettings


HELP = (
    "Answer a prompt, or a JSONL file of prompts.\n\n"
    "Draft, target and reward model together run reward-guided speculative decoding; a draft or "
    "target given alone writes alone. To resume an interrupted run over a file, give the same "
    "command again. Results go to stdout or the output file, logs to stderr."
)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help='The prompt, or "-" to read it from stdin.')
    ] = None,
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    revision: o.Revision = None,
    input: o.Input = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    chat: o.Chat = None,
    system: o.System = None,
    show_steps: o.ShowSteps = None,
    json: o.Json = None,
    config: o.ConfigFile = None,
    verbose: o.Verbose = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_model_len: o.MaxModelLen = None,
    kv_cache_memory: o.KvCacheMemory = None,
    gpu_memory_utilization: o.GpuMemoryUtilization = None,
    executor: o.Executor = None,
    policy: o.PolicyOption = None,
    mode: o.Mode = None,
    step_delimiter: o.StepDelimiter = None,
    no_steps: o.NoSteps = False,
    max_step_tokens: o.MaxStepTokens = None,
    max_steps: o.MaxSteps = None,
    n: o.N = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    stop: o.Stop = None,
) -> None:
    """See HELP."""
    given = dict(locals())
    with clean_errors():
        code = _run(given)
    raise typer.Exit(code)


_SAMPLING = (
    "mode", "max_step_tokens", "max_steps", "n", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "seed", "max_tokens", "stop",
)  # fmt: skip
_ENGINE = (
    "draft", "target", "prm", "revision", "device", "dtype", "max_num_seqs", "max_model_len",
    "gpu_memory_utilization", "executor",
)  # fmt: skip
# What may differ between a run and the one that resumes it, because no result depends on it.
_FREE = (
    "device", "max_num_seqs", "kv_cache_memory_bytes", "gpu_memory_utilization", "executor",
)  # fmt: skip


@dataclass(frozen=True)
class _Format:
    """How prompts are read and results shown; the keys of the config table [generate]."""

    chat: bool | None = None  # None: if the tokenizer has a template
    system: str | None = None
    show_steps: bool = False
    json: bool = False
    verbose: bool = False


def _run(given: dict[str, Any]) -> int:
    config = read_config(given["config"])
    engine = _engine_arguments(given, config)
    sampling = _sampling_arguments(given, config)
    own = _present(given, ("chat", "system", "show_steps", "json", "verbose"))
    form = _Format(**(config.generate | own))
    _check_files(given)
    settings = _settings(engine, sampling, form)
    if given["input"] is not None:
        from rsd_engine.cli.generate.file import run_file

        return run_file(settings, given["input"], given["output"], overwrite=given["overwrite"])
    from rsd_engine.cli.generate.one import read_prompt, run_one

    prompt = read_prompt(given["prompt"])
    return run_one(settings, prompt, show_steps=form.show_steps, as_json=form.json)


def _present(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if given[name] not in (None, [])}


def _engine_arguments(given: dict[str, Any], config: Config) -> dict[str, Any]:
    found = config.engine | _present(given, _ENGINE)
    if given["kv_cache_memory"] is not None:
        found["kv_cache_memory_bytes"] = values.size("--kv-cache-memory", given["kv_cache_memory"])
    if given["policy"] is not None:
        found["policy"] = values.policy("--policy", given["policy"])
    if given["step_delimiter"]:
        if given["no_steps"]:
            raise UsageError("--no-steps and --step-delimiter exclude each other")
        found["step_delimiters"] = [
            values.unescape("--step-delimiter", item) for item in given["step_delimiter"]
        ]
    if given["no_steps"]:
        found["step_delimiters"] = None
    if not {"draft", "target"} & set(found):
        raise UsageError(
            "no model is given; give --draft, --target and --prm, or --draft or --target alone, or "
            "name them in the [engine] table of --config"
        )
    return found


def _sampling_arguments(given: dict[str, Any], config: Config) -> dict[str, Any]:
    own = _present(given, _SAMPLING)
    if "stop" in own:
        own["stop"] = [values.unescape("--stop", item) for item in own["stop"]]
    try:
        sampling_values(own)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if given["policy"] is not None:
        own["policy"] = values.policy("--policy", given["policy"])
    return config.sampling | own


def _check_files(given: dict[str, Any]) -> None:
    if (given["prompt"] is None) == (given["input"] is None):
        raise UsageError("give either a prompt (- for stdin) or --input FILE")
    if given["input"] is None and given["output"] is not None:
        raise UsageError("--output needs --input; the answer to one prompt goes to stdout")
    if given["overwrite"] and given["output"] is None:
        raise UsageError("--overwrite needs --output")
    if given["input"] is not None and (given["show_steps"] or given["json"] is False):
        raise UsageError("--show-steps and --no-json are for one prompt; a file gives JSON lines")


def _settings(engine: dict[str, Any], sampling: dict[str, Any], form: _Format) -> RunSettings:
    from rsd_engine.cli.generate.file import RunSettings

    decisive = {
        "engine": {name: value for name, value in engine.items() if name not in _FREE},
        "sampling": sampling,
        "chat": form.chat,
        "system": form.system,
    }
    text = json.dumps(decisive, sort_keys=True, default=repr)
    return RunSettings(
        make_engine=lambda: make_engine(engine, verbose=form.verbose),
        sampling=sampling,
        chat=form.chat,
        system=form.system,
        digest=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
    )


def make_engine(arguments: dict[str, Any], *, verbose: bool) -> Engine:
    """Makes an engine with these arguments; with `verbose` its log goes to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rsd_engine").setLevel(logging.INFO if verbose else logging.WARNING)
    from rsd_engine import Engine

    return Engine(**arguments)
