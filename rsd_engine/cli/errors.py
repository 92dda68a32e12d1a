"""What a user sees when something goes wrong: one clear line, and an exit code that tells what."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Exit codes; 0 means that all went well.
FAILED = 1
USAGE = 2  # the command was used wrongly
INTERRUPTED = 130  # Ctrl-C, as shells report it

_interrupts: list[int] = []


class UsageError(ValueError):
    """The command line, the config file or a file that they name cannot be used as it is."""


def print_stderr(text: str) -> None:
    """Prints a line for people; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def notice_interrupts() -> None:
    """Remembers that Ctrl-C was pressed: a library that is loading may turn it into an error."""

    def handle(number: int, frame: FrameType | None) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turns errors that a user can cause into a line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted() from None
    except BrokenPipeError:
        # The reader of our output has gone, as in `rsd demo | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if caused_by_interrupt(error):
            raise _interrupted() from None
        print_stderr(f"error: {str(error) or type(error).__name__}")
        raise SystemExit(USAGE if isinstance(error, UsageError) else FAILED) from None
    except Exception as error:
        if caused_by_interrupt(error):
            raise _interrupted() from None
        raise


def _interrupted() -> SystemExit:
    print_stderr("interrupted")
    return SystemExit(INTERRUPTED)


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first: code that it interrupts, or that cleans up, may fail in turn."""
    if _interrupts:
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
