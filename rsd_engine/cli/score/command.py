"""`rsd score`: the PRM's rewards of given steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.engine_options import EngineOptions, engine_arguments, make_engine
from rsd_engine.cli.errors import UsageError, clean_errors

HELP = (
    "Score the steps of given solutions with the PRM.\n\n"
    'Every line of FILE is an object with "question" and "steps" (a list of texts, or one text), '
    'or with "messages" of which the last is the solution. A line of JSON is printed for each.'
)


def score(
    file: Annotated[Path, typer.Argument(help="JSONL file, or - for stdin.")],
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    prm_format: o.PrmFormat = None,
    prm_separator: o.PrmSeparator = None,
    step_delimiter: o.StepDelimiter = None,
    quantization: o.QuantizationOption = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    config: o.ConfigFile = None,
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(verbose)):
        from rsd_engine.cli.generate.questions import read_lines

        options = EngineOptions(
            draft=draft, target=target, prm=prm, prm_format=prm_format, prm_separator=prm_separator,
            step_delimiter=step_delimiter, quantization=quantization, device=device, dtype=dtype,
            verbose=verbose,
        )  # fmt: skip
        arguments = engine_arguments(options, read_config(config))
        solutions = []
        for line in read_lines(file):
            try:
                solutions.append(json.loads(line.raw))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file}, line {line.number}: not JSON: {error}") from None
        with make_engine(arguments, verbose=bool(verbose)) as engine:
            for found in engine.score(solutions) if solutions else ():
                typer.echo(json.dumps(found.to_dict()))
