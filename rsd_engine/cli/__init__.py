"""The command `rsd`: a demo, generation from the shell, and facts about the installation."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Entry point of the `rsd` script; ends the process with the command's exit code."""
    from rsd_engine.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 gets escapes, not an error half-way.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="rsd")
