"""Checks of arguments: an error names the argument, what it was and what is allowed.

numpy's integers, floats and booleans are taken like Python's, and come back as Python's. The
device holds integers in int32 and other numbers in float32: what these cannot hold is not allowed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = (2 - 2.0**-23) * 2.0**127
_TINY = 2.0**-126  # below it a device may read 0
_MOST_SHOWN = 100  # characters of a value in an error message


def check_integer(name: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int; ValueError unless it is an integer in [low, high], None being no bound."""
    allowed = "" if low is None else f" >= {low}" if high is None else f" in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer{allowed}, got {shown(value)}")
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"{name} must be{allowed}, got {shown(number)}")
    return number


def check_number(
    name: str, value: object, low: float, high: float, allowed: str, *, open_low: bool = False
) -> float:
    """`value` as a float; ValueError unless it is a finite number of [low, high], or (low, high].

    What is finite and not 0 must be so in float32 too. `allowed` says the range in words:
    "in (0, 1]".
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number {allowed}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        number = math.inf
    inside = low < number <= high if open_low else low <= number <= high
    if not inside or abs(number) > MAX_FLOAT32:
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    if value != 0 and abs(number) < _TINY:
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}, which float32 takes for 0")
    return number + 0.0  # -0.0 becomes 0.0


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool; ValueError unless it is True or False."""
    # The command line starts without numpy, and then no value can be one of its booleans.
    numpy = sys.modules.get("numpy")
    if not isinstance(value, bool) and not (numpy and isinstance(value, numpy.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def check_text(name: str, value: object) -> None:
    """Raises ValueError unless `value` is text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be text that UTF-8 can encode, got half of a surrogate pair at "
            f"character {error.start}"
        ) from None


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether `value` is a list of anything; text and bytes are not."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def kind(value: object) -> str:
    """The type of a value that is not allowed; for arrays and tensors with what to do."""
    hint = " (use .tolist())" if hasattr(value, "tolist") else ""
    return f"{type(value).__name__}{hint}"


def shown(value: object) -> str:
    """`value` as an error message shows it: on one line, and not long."""
    if isinstance(value, int) and value.bit_length() > 4 * _MOST_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = " ".join((str(value) if isinstance(value, int | float) else repr(value)).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
