"""The commands of `rsd`. Heavy modules are imported only when a command runs: `--help` is quick."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from rsd_engine.cli.bench.command import bench
from rsd_engine.cli.chat.command import HELP as CHAT_HELP
from rsd_engine.cli.chat.command import chat
from rsd_engine.cli.demo.command import HELP as DEMO_HELP
from rsd_engine.cli.demo.command import demo
from rsd_engine.cli.errors import clean_errors
from rsd_engine.cli.eval.command import HELP as EVAL_HELP
from rsd_engine.cli.eval.command import evaluate
from rsd_engine.cli.generate.command import HELP as GENERATE_HELP
from rsd_engine.cli.generate.command import generate
from rsd_engine.cli.inspect.command import HELP as INSPECT_HELP
from rsd_engine.cli.inspect.command import inspect
from rsd_engine.cli.options import Verbose
from rsd_engine.cli.plan.command import HELP as PLAN_HELP
from rsd_engine.cli.plan.command import plan
from rsd_engine.cli.profile.command import HELP as PROFILE_HELP
from rsd_engine.cli.profile.command import profile
from rsd_engine.cli.score.command import HELP as SCORE_HELP
from rsd_engine.cli.score.command import score
from rsd_engine.cli.serve.command import HELP as SERVE_HELP
from rsd_engine.cli.serve.command import serve
from rsd_engine.cli.trace.command import HELP as TRACE_HELP
from rsd_engine.cli.trace.command import trace
from rsd_engine.cli.tune.command import HELP as TUNE_HELP
from rsd_engine.cli.tune.command import tune

app = typer.Typer(
    name="rsd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reward-guided speculative decoding: a draft writes steps, a reward model scores them, "
    "and a target rewrites the rejected ones.",
)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = importlib.metadata.version("rsd-engine")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed: run from a checkout)"
    typer.echo(f"rsd-engine {version}")
    raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `rsd` itself."""


@app.command()
def doctor(verbose: Verbose = None) -> None:
    """Show versions, devices, what was built and what will run."""
    with clean_errors(verbose=bool(verbose)):
        from rsd_engine import doctor as checks

        checks.main()


app.add_typer(bench, name="bench")
app.command(help=CHAT_HELP)(chat)
app.command(help=DEMO_HELP)(demo)
app.command("eval", help=EVAL_HELP)(evaluate)
app.command(help=GENERATE_HELP)(generate)
app.command(help=INSPECT_HELP)(inspect)
app.command(help=PLAN_HELP)(plan)
app.command(help=PROFILE_HELP)(profile)
app.command(help=SCORE_HELP)(score)
app.command(help=SERVE_HELP)(serve)
app.command(help=TRACE_HELP)(trace)
app.command(help=TUNE_HELP)(tune)
