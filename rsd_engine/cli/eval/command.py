"""`rsd eval`: does RSD pay, on these models and these questions?"""

from __future__ import annotations

from typing import Any

import typer

from rsd_engine.cli.errors import clean_errors
from rsd_engine.cli.eval.options import EvalOptions
from rsd_engine.cli.from_dataclass import takes_options

HELP = (
    "Compare methods of answering, on questions whose answers are known.\n\n"
    "Without models it takes the demo family. Every answer goes to results.jsonl in the output "
    "folder, with its steps; the table goes to stdout, and to summary.json. To resume an "
    "interrupted run, or to add methods at the end of the list, give the command again."
)


@takes_options(EvalOptions)
def evaluate(**given: Any) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(given["verbose"])):
        options = EvalOptions(**given)
        if options.show_list:
            from rsd_engine.cli.eval.show import print_list

            print_list()
            code = 0
        else:
            from rsd_engine.cli.eval.run import run_eval

            code = run_eval(options)
    raise typer.Exit(code)
