"""What fails is told and counted, and the rest of a benchmark runs: time on a GPU is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class Attempts:
    """Runs what may fail.

    Attributes:
        failed: what failed and why, in order.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run_all(self, labelled: Iterable[tuple[str, Callable[[], T]]]) -> dict[str, T]:
        """What the functions return, by their labels; those that raised are left out."""
        found = {}
        for label, fn in labelled:
            try:
                found[label] = fn()
            except Exception as error:  # a compiler's, a driver's, a gate's: all are findings
                self.failed.append(f"{label}: {type(error).__name__}: {error}")
                print(f"failed: {self.failed[-1]}", flush=True)
        return found
