"""Plain frozen data of numbers, as a command line writes it: `name` or `name:number[:number]`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, astuple, dataclass, fields
from numbers import Real
from typing import TypeVar

from rsd_engine.arguments import MAX_FLOAT32, check_number

T = TypeVar("T", bound="Numbers")


@dataclass(frozen=True)
class Numbers:
    """A dataclass whose fields are numbers; its name, in lower case, stands for it in text."""

    def _check(self, name: str, low: float, high: float, allowed: str) -> None:
        """Stores a field as a float; ValueError unless it is in its range and float32's."""
        number = check_number(name, getattr(self, name), low, high, allowed)
        object.__setattr__(self, name, number)

    def _check_float32(self, name: str) -> None:
        self._check(name, -MAX_FLOAT32, MAX_FLOAT32, "in [-3.4e38, 3.4e38]")

    def _check_bound(self, name: str) -> None:
        """The same for a field that may be infinite."""
        value = getattr(self, name)
        if not (isinstance(value, Real) and value in (-math.inf, math.inf)):
            allowed = "infinite or in [-3.4e38, 3.4e38]"
            self._check(name, -MAX_FLOAT32, MAX_FLOAT32, allowed)

    @property
    def text(self) -> str:
        """As `parse_form` reads it."""
        return ":".join([type(self).__name__.lower(), *map(str, astuple(self))])


def form_of(kind: type[Numbers]) -> str:
    """How a class is written: `constant:p`, `threshold[:threshold]`."""
    return kind.__name__.lower() + "".join(
        f":{f.name}" if f.default is MISSING else f"[:{f.name}]" for f in fields(kind)
    )


def parse_form(argument: str, kinds: Mapping[str, type[T]], text: str) -> T:
    """What a text names; `kinds` are the classes by the names that stand for them.

    Raises:
        ValueError: the name is unknown, a number is missing, too many or out of its range.
    """
    name, *numbers = text.strip().split(":")
    allowed = ", ".join(form_of(kind) for kind in kinds.values())
    if name not in kinds:
        raise ValueError(f"{argument} = {text!r}: unknown; write one of {allowed}")
    try:
        return kinds[name](*map(_number, numbers))
    except TypeError:
        raise ValueError(
            f"{argument} = {text!r}: wrong count of numbers; write one of {allowed}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{argument} = {text!r}: {error}") from None


def _number(text: str) -> int | float:
    try:
        return int(text) if text.strip().isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number, such as 20 or 0.7") from None
