"""One line of a verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was checked and what came out; a problem also says what to do."""

    subject: str  # "checkpoint", "roles", "vocabulary", "prm", "stop tokens", ...
    is_problem: bool
    text: str


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, False, text)


def problem(subject: str, text: str) -> Finding:
    return Finding(subject, True, text)
