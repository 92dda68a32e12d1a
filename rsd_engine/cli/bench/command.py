"""`rsd bench`: a group of commands, of which `serve` measures a server."""

from __future__ import annotations

from typing import Any

import typer

from rsd_engine.cli.bench.options import BenchServeOptions
from rsd_engine.cli.errors import clean_errors
from rsd_engine.cli.from_dataclass import takes_options

HELP = "Measure what runs already."
SERVE_HELP = (
    "Measure a running server by OpenAI's protocol: this one, vLLM, SGLang or another.\n\n"
    "Throughput, time to first token, time per output token, inter-token and end-to-end latency, "
    "and how much of a draft's text was accepted. Needs the `client` extra. The exit code is 1 if "
    "no request of a run succeeded."
)

bench = typer.Typer(help=HELP, no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Keeps `serve` a command of its own while it is the only one."""


@takes_options(BenchServeOptions)
def serve(**given: Any) -> None:
    """See SERVE_HELP."""
    with clean_errors(verbose=bool(given["verbose"])):
        from rsd_engine.cli.bench.run import run_bench

        code = run_bench(BenchServeOptions(**given))
    raise typer.Exit(code)


bench.command("serve", help=SERVE_HELP)(serve)
