"""The command `rsd`: a demo, generation, plans, profiles, facts about models and machine."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

from rsd_engine.cli.errors import INTERRUPTED, notice_interrupts


def main() -> None:
    """Entry point of the `rsd` script; ends the process with the command's exit code."""
    try:
        from rsd_engine.cli.app import app

        notice_interrupts()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal that is not UTF-8 gets escapes, not an error.
                stream.reconfigure(errors="backslashreplace")
        app(prog_name="rsd")
    except KeyboardInterrupt:
        _leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave()
        raise


def _leave() -> NoReturn:
    """Ends the process after Ctrl-C, when everything is written.

    Python would wait for the thread of the core, and may hang if Ctrl-C comes again meanwhile.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(INTERRUPTED)
