"""What a user sees when something goes wrong: one clear line, and an exit code that tells what."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

# Exit codes; 0 means that all went well.
FAILED = 1
USAGE = 2  # the command was used wrongly
INTERRUPTED = 130  # Ctrl-C, as shells report it

# What a value, a file or a machine may cause; anything else is a fault of the program.
EXPECTED = (ValueError, OSError, ImportError, MemoryError, RecursionError, OverflowError)

_SHOW_CURSOR = b"\x1b[?25h\ninterrupted\n"  # a progress bar hides it
_MAX_JOINED = 300  # characters of a message of several lines
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_interrupts: list[int] = []


class Interrupted(SystemExit):
    """Ends the process after Ctrl-C, which the user has been told."""


class UsageError(ValueError):
    """The command line, the config file or a file that they name cannot be used as it is."""


def print_stderr(text: str) -> None:
    """Prints a line for people; stdout is for results. Goes on if nobody can read it."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def notice_interrupts() -> None:
    """Remembers that Ctrl-C was pressed: a library that is loading may turn it into an error.

    The second one ends the process at once; results are on disk already.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if _interrupts:
            _end_now()
        _interrupts.append(number)
        raise KeyboardInterrupt

    def handle_lost(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is KeyboardInterrupt:
            _end_now()
        sys.__unraisablehook__(lost)

    signal.signal(signal.SIGINT, handle)
    sys.unraisablehook = handle_lost  # where Python ignores errors, as in `__del__`


def _end_now() -> NoReturn:
    """Ends the process. Printing may be what was interrupted, so nothing is flushed."""
    with suppress(OSError):
        os.write(2, _SHOW_CURSOR if os.isatty(2) else b"interrupted\n")
    os._exit(INTERRUPTED)


def leave(code: int) -> NoReturn:
    """Ends the process at once, when everything is written.

    Python would wait for the thread of the core, and may hang if Ctrl-C comes again meanwhile.
    """
    flush(sys.stdout)
    flush(sys.stderr)
    os._exit(code)


def flush(stream: TextIO) -> OSError | None:
    """Writes out what waits; if it cannot be written, it is dropped, and the error returned."""
    try:
        stream.flush()
    except ValueError:  # it is closed
        return None
    except OSError as error:
        # Python would try it again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


@contextmanager
def clean_errors(*, verbose: bool = False) -> Iterator[None]:
    """Turns errors into a line on stderr and an exit code; with `verbose` the traceback as well."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted() from None
    except BrokenPipeError:  # the reader of our output has gone, as in `rsd demo | head`
        raise SystemExit(FAILED) from None
    except Exception as error:
        if caused_by_interrupt(error):
            raise _interrupted() from None
        if verbose:
            print_stderr("".join(traceback.format_exception(error)).rstrip())
        print_stderr(f"error: {error_line(error)}")
        raise SystemExit(USAGE if isinstance(error, UsageError) else FAILED) from None


def error_line(error: Exception) -> str:
    """An error in one line; that of a fault of the program says where it was raised."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename is None else f"{error.filename}: "
        text = f"{named}{error.strerror}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(lines))
    if len(lines) > 1 and len(line) > _MAX_JOINED:
        line = f"{line[:_MAX_JOINED]} ... (--verbose shows the rest)"
    if isinstance(error, EXPECTED) or type(error).__module__.startswith("rsd_engine."):
        return line or _unnamed(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}; " if frames else ""
    kind = type(error).__name__
    return f"{kind}: {line} ({where}--verbose shows more)" if line else f"{kind} ({where})"


def _unnamed(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return type(error).__name__


def _interrupted() -> Interrupted:
    print_stderr("interrupted")
    return Interrupted(INTERRUPTED)


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first: code that it interrupts, or that cleans up, may fail in turn."""
    if _interrupts:
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
