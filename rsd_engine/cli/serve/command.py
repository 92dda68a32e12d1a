"""`rsd serve`: an OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

from rsd_engine.cli.errors import clean_errors
from rsd_engine.cli.from_dataclass import takes_options
from rsd_engine.cli.serve.options import ServeOptions

HELP = (
    "Serve the models by OpenAI's protocol.\n\n"
    "Chats and completions, streamed or whole, and metrics for Prometheus. Needs the `server` "
    "extra. Ctrl-C lets running requests end; a second one does not wait."
)


@takes_options(ServeOptions)
def serve(**given: Any) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(given["verbose"])):
        from rsd_engine.cli.serve.run import run_server

        run_server(ServeOptions(**given))
