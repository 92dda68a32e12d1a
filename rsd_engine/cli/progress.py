"""The progress of a run: a bar on a terminal, and a summary line at the end."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from rsd_engine.cli.errors import print_stderr
from rsd_engine.cli.show import make_console, visible
from rsd_engine.engine.reward_watch import reward_problem


class Progress:
    """A bar on stderr, if that is a terminal, with notes above it."""

    def __init__(self, total: int, done: int) -> None:
        self._console = make_console(stderr=True)
        self._started = time.perf_counter()
        self._tokens = 0
        self._accepted = self._scored = 0
        self._count = 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("reading", total=total, completed=done, facts="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def status(self, text: str) -> None:
        """Says what is going on; speeds and shares count from here."""
        self._tokens = self._accepted = self._scored = self._count = 0
        self._started = time.perf_counter()
        self._bar.update(self._task, description=text)

    def begin(self, text: str, total: int, done: int) -> None:
        """Starts again with a part of the run: `total` lines, of which some are done."""
        self._bar.reset(self._task, total=total, completed=done)
        self.status(text)

    def note(self, text: str) -> None:
        """Prints a line on stderr without breaking the bar."""
        if self._console.is_terminal:
            self._bar.print(Text(visible(text)), soft_wrap=True)
        else:
            print_stderr(visible(text))

    def advance(self, metrics: Any, fact: str = "") -> None:
        """Counts one more line; `metrics` are those of its request, if it had one.

        What else there is to know, in a few words, stands before the speed.
        """
        if metrics is not None:
            self._count += 1
            self._tokens += metrics.draft.tokens_generated + metrics.target.tokens_generated
            self._accepted += metrics.steps_accepted
            self._scored += metrics.steps_accepted + metrics.steps_rejected
        self._bar.update(self._task, advance=1, facts=f"{fact}{self._facts()}")

    def summary(self, metrics: Any) -> None:
        """Prints the run in one line."""
        self._bar.stop()
        if metrics is not None:
            seconds = time.perf_counter() - self._started
            requests = "1 request" if self._count == 1 else f"{self._count} requests"
            facts = self._facts("of draft steps accepted")
            print_stderr(f"{requests} in {seconds:.1f} s, {self._tokens} tokens, {facts}")
            if problem := reward_problem(metrics):
                print_stderr(f"note: {problem}")

    def _facts(self, accepted: str = "accepted") -> str:
        speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
        facts = f"{speed:.0f} tokens/s"
        if self._scored:
            facts += f", {self._accepted / self._scored:.0%} {accepted}"
        return facts
