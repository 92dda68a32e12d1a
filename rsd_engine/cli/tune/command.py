"""`rsd tune`: which threshold keeps to a budget, for these models and this PRM?"""

from __future__ import annotations

from typing import Any

import typer

from rsd_engine.cli.errors import clean_errors
from rsd_engine.cli.from_dataclass import takes_options
from rsd_engine.cli.tune.options import TuneOptions

HELP = (
    "Find the threshold that keeps the target to a share of the tokens.\n\n"
    "Without models it takes the demo family. It answers questions with RSD, tells how the share "
    "grows with the threshold, and recommends the largest one within the budget. A threshold is "
    "good for the models, the PRM and the kind of questions that it was found with: rewards of "
    "two PRMs are not on one scale."
)


@takes_options(TuneOptions)
def tune(**given: Any) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(given["verbose"])):
        from rsd_engine.cli.tune.run import run_tune

        run_tune(TuneOptions(**given))
    raise typer.Exit(0)
