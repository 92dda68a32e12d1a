"""`rsd demo`: the demo family solves held-out problems, and is compared with its models alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.errors import clean_errors

HELP = (
    "Solve N word problems step by step, then compare RSD with its models alone.\n\n"
    "The three models come with the package. Decoding is greedy. The models were not trained on "
    "these problems; those that are shown are the first of each kind."
)


def demo(
    problems: Annotated[
        int | None,
        typer.Argument(
            help="How many problems to show step by step (default: 3)",
            metavar="N",
            min=1,
            max=o.MAX_PROBLEMS,
        ),
    ] = None,
    compare: Annotated[
        int | None,
        typer.Option(
            help="How many problems to compare on (default: 80)", min=1, max=o.MAX_PROBLEMS
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep draft steps with at least this reward (default: 0.7)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which problems to draw (default: 0)")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ... (default: auto)")] = None,
    draft: Annotated[str | None, typer.Option(help="A draft in place of the demo's.")] = None,
    target: Annotated[str | None, typer.Option(help="A target in place of the demo's.")] = None,
    prm: Annotated[str | None, typer.Option(help="A PRM in place of the demo's.")] = None,
    quantization: o.QuantizationOption = None,
    json: Annotated[
        bool | None,
        typer.Option("--json/--no-json", help="Print the comparison as one line of JSON instead."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the compared answers as a page, see rsd trace.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help=r"TOML file with a \[demo] table.")] = None,
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    given = {name: value for name, value in locals().items() if value is not None}
    with clean_errors(verbose=bool(verbose)):
        _run(given)


def _run(given: dict[str, Any]) -> None:
    table = read_config(given.pop("config", None)).demo
    if "quantization" in given:
        given["quantization"] = values.quantization("--quantization", given["quantization"])
    from rsd_engine.cli.demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(**(table | given)))
