"""What a user sees when something goes wrong: one clear line, and an exit code that tells which.

0 all went well, 1 something failed, 2 the command was used wrongly, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from rsd_engine.cli.exit_codes import FAILED, INTERRUPTED, USAGE

_interrupts: list[int] = []


class UsageError(ValueError):
    """The command line, the config file or the files it names cannot be used as they are."""


def say(text: str) -> None:
    """One line for people, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def notice_interrupts() -> None:
    """Remembers that Ctrl-C was pressed: libraries that load may turn it into other errors."""

    def handle(number: int, frame: FrameType | None) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turns errors a user can cause into a line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted() from None
    except BrokenPipeError:
        # The reader of our output has gone, as in `rsd demo | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except (ValueError, OSError, ImportError) as error:
        if caused_by_interrupt(error):
            raise _interrupted() from None
        say(f"error: {error}")
        code = USAGE if isinstance(error, UsageError) else FAILED
        raise typer.Exit(code) from None
    except Exception as error:
        if caused_by_interrupt(error):
            raise _interrupted() from None
        raise


def _interrupted() -> typer.Exit:
    say("interrupted")
    return typer.Exit(INTERRUPTED)


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first: code that it breaks into, or that cleans up, may fail in turn."""
    if _interrupts:
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
