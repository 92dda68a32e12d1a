"""`rsd demo`: the demo family solves held-out problems in front of the user's eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.errors import UsageError, clean_errors

HELP = (
    "Solve N word problems step by step, then compare with the target alone.\n\n"
    "The three models come with the package. Decoding is greedy; the problems are none of those "
    "the models were trained on."
)
_DEFAULTS: dict[str, Any] = {
    "problems": 3,
    "threshold": 0.7,
    "seed": 0,
    "device": "auto",
    "verbose": False,
}


def demo(
    problems: Annotated[
        int | None, typer.Argument(help="How many problems (default: 3)", metavar="N", min=1)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Accept a draft step from this reward on (default: 0.7)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which problems are drawn (default: 0)")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ... (default: auto)")] = None,
    draft: Annotated[str | None, typer.Option(help="Another draft than the demo's.")] = None,
    target: Annotated[str | None, typer.Option(help="Another target.")] = None,
    prm: Annotated[str | None, typer.Option(help="Another process reward model.")] = None,
    config: Annotated[Path | None, typer.Option(help=r"TOML file with a \[demo] table.")] = None,
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    given = {name: value for name, value in locals().items() if value is not None}
    with clean_errors():
        _run(given)


def _run(given: dict[str, Any]) -> None:
    table = read_config(given.pop("config", None)).demo
    wanted = _DEFAULTS | table | given
    if wanted["problems"] < 1:
        raise UsageError(f"demo.problems must be at least 1, got {wanted['problems']}")
    if wanted["threshold"] != wanted["threshold"]:
        raise UsageError(f"threshold must be a number, got {wanted['threshold']}")
    from rsd_engine.cli.demo.run import run_demo

    run_demo(wanted)
