"""A line of a results file: which line of the input it answers, with which settings, and what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol


class Asked(Protocol):
    """What a run is to answer, such as a line of an input file."""

    @property
    def number(self) -> int:
        """Its place in the order of results."""

    @property
    def digest(self) -> str:
        """Differs if it has changed since it was answered."""


@dataclass(frozen=True)
class ResultsKind:
    """What a file of results is of.

    Attributes:
        command: that writes such files.
        settings: the key of a line that has the digest of the run's settings.
        place: what an error calls the input with a number.
    """

    command: str
    settings: str = "settings"
    place: str = "line {number} of the input"


def encode_result(kind: ResultsKind, asked: Asked, settings: str, result: dict[str, Any]) -> bytes:
    """A result as one line of JSON. It begins with `line`, which marks even an incomplete one."""
    head = {"line": asked.number, "input": asked.digest, kind.settings: settings}
    return to_json({**head, **result}).encode() + b"\n"


def to_json(values: dict[str, Any]) -> str:
    """JSON that any Unicode encoding can write.

    Half a surrogate pair, which JSON allows and UTF-8 does not, becomes its JSON escape again.
    """
    text = json.dumps(values, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()
