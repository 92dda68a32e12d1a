"""Checks of arguments: an error names the argument, what it was and what is allowed.

numpy's integers, floats and booleans are taken like Python's, and come back as Python's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np


def check_integer(name: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int; ValueError unless it is an integer in [low, high], None being no bound."""
    allowed = "" if low is None else f" >= {low}" if high is None else f" in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer{allowed}, got {value!r}")
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"{name} must be{allowed}, got {number}")
    return number


def check_number(
    name: str, value: object, low: float, high: float, allowed: str, *, open_low: bool = False
) -> float:
    """`value` as a float; ValueError unless it is a finite number of [low, high], or (low, high].

    `allowed` says the range in words: "in (0, 1]".
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        number = math.inf
    inside = low < number <= high if open_low else low <= number <= high
    if not inside or math.isinf(number):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool; ValueError unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_text(name: str, value: object) -> None:
    """Raises ValueError unless `value` is text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
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
