"""`rsd chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Any

import typer

from rsd_engine.cli.chat.options import ChatOptions
from rsd_engine.cli.errors import clean_errors
from rsd_engine.cli.from_dataclass import takes_options

HELP = (
    "Chat in the terminal, with models loaded here or with a running server.\n\n"
    "With --show-steps every step has its reward and the colour of the model that wrote it, and a "
    "rejected one is struck through above its rewrite. /help lists what can be changed on the way. "
    "From a pipe each line of stdin is a question. --url needs the `client` extra."
)


@takes_options(ChatOptions)
def chat(**given: Any) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(given["verbose"])):
        from rsd_engine.cli.chat.run import run_chat

        code = run_chat(ChatOptions(**given))
    raise typer.Exit(code)
