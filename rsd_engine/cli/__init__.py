"""The command `rsd`: a demo, generation, plans, profiles, facts about models and machine."""

from __future__ import annotations

import io
import os
import signal
import sys

from rsd_engine.cli.errors import (
    FAILED,
    INTERRUPTED,
    Interrupted,
    caused_by_interrupt,
    clean_errors,
    error_line,
    flush,
    leave,
    notice_interrupts,
    print_stderr,
)


def main() -> None:
    """Entry point of the `rsd` script; ends the process with the command's exit code."""
    try:
        notice_interrupts()
        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal that is not UTF-8 gets escapes, not an error.
                stream.reconfigure(errors="backslashreplace")
        with clean_errors():
            from rsd_engine.cli.app import app

            app(prog_name="rsd")
    except Interrupted:
        leave(INTERRUPTED)
    except BaseException as error:
        if caused_by_interrupt(error):
            print_stderr("interrupted")
            leave(INTERRUPTED)
        if not isinstance(error, SystemExit):
            raise
        _end(error.code)


def _end(code: str | int | None) -> None:
    """Ends the process; output that cannot be written is an error, too.

    After another error it is not told: some versions of Python fail again to flush what failed.
    """
    flush(sys.stderr)
    if error := flush(sys.stdout):
        if not code and not isinstance(error, BrokenPipeError):
            print_stderr(f"error: cannot write to stdout: {error_line(error)}")
        code = code or FAILED
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's end is not ours to report
    raise SystemExit(code)


def _open_closed_streams() -> None:
    """Opens stdin, stdout and stderr, if they are closed, on nothing.

    Otherwise the next file that is opened takes the place of stdout, for instance.
    """
    while (file := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(file)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
