"""`rsd generate`: which of its ways of running the options ask for."""

from __future__ import annotations

from typing import Any

import typer

from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.errors import UsageError, clean_errors
from rsd_engine.cli.from_dataclass import takes_options
from rsd_engine.cli.generate.options import GenerateOptions

HELP = (
    "Answer a prompt, or a JSONL file of prompts.\n\n"
    "Draft, target and reward model together run reward-guided speculative decoding; a draft or "
    "target given alone writes alone. To resume an interrupted run over a file, give the same "
    "command again. Results go to stdout or the output file, logs to stderr."
)


@takes_options(GenerateOptions)
def generate(**given: Any) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(given["verbose"])):
        code = _run(GenerateOptions(**given))
    raise typer.Exit(code)


def _run(options: GenerateOptions) -> int:
    from rsd_engine.cli.generate.settings import run_settings, show_settings

    config = read_config(options.config)
    settings = run_settings(options, config)
    _check_files(options)
    if options.input is not None:
        from rsd_engine.cli.generate.file import run_file

        output = None if str(options.output) == "-" else options.output
        return run_file(settings, options.input, output, overwrite=options.overwrite)
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
