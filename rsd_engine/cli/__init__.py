"""The command `rsd`: a demo, generation from the shell, and facts about the installation."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Entry point of the `rsd` script; ends the process with the command's exit code."""
    try:
        from rsd_engine.cli.app import app
        from rsd_engine.cli.errors import notice_interrupts

        notice_interrupts()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal that is not UTF-8 gets escapes, not an error half-way.
                stream.reconfigure(errors="backslashreplace")
        app(prog_name="rsd")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
