"""Shows steps on the screen: in colour on a terminal, with labels where there is no colour."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsd_engine.outputs import Candidate

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLES = {"draft": "green", "rejected": "red", "target": "yellow", "lost": "bright_black"}
_TAG_WIDTH = len("rejected 0.00")


def is_plain(console: Console) -> bool:
    """Whether the console shows no colour: it is not a terminal, or NO_COLOR is set."""
    return not console.is_terminal or bool(os.environ.get("NO_COLOR")) or console.no_color


def make_console(*, stderr: bool = False) -> Console:
    """A console that adds no colours of its own to numbers and paths."""
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False)


class StepView:
    """Prints decided steps, one below the other; what no model scores runs on as it comes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = is_plain(console)
        self._running: str | None = None  # who wrote the text whose line has no end yet
        self._rewriting = False  # whether the next step stands in the place of a rejected one

    def legend(self) -> None:
        """Explains the colours; plain output has a label at every step."""
        if self.plain:
            return
        self.console.print(
            Text.assemble(
                ("accepted draft step", _STYLES["draft"]), "   ",
                ("rejected draft step", f"{_STYLES['rejected']} strike"), "   ",
                ("target's rewrite", _STYLES["target"]), "   (number: reward)",
            )
        )  # fmt: skip

    def event(self, event: Any) -> None:
        """Shows a StepEvent, or what has its kind, source, reward and text."""
        rejected = event.kind == "rejected"
        if rejected or self._rewriting or event.reward is not None:
            self.step("rejected" if rejected else event.source, event.reward, event.text)
        else:
            self._run_on(event.source or "", event.text)
        self._rewriting = rejected

    def lost(self, candidates: Sequence[Candidate]) -> None:
        """Shows the candidates that another step was taken in place of."""
        for candidate in candidates:
            self.step("lost", candidate.reward, candidate.text)

    def end(self) -> None:
        """Ends the line of text that runs on, if there is one."""
        if self._running is not None:
            self.console.print()
        self._running, self._rewriting = None, False

    def _run_on(self, source: str, text: str) -> None:
        """Prints tokens of a model that writes without a reward model."""
        if source != self._running:
            self.end()
            if self.plain and source:
                self.console.print(Text(f"[{source}] "), end="")
        self._running = source
        style = "" if self.plain else _STYLES.get(source, "")
        self.console.print(Text(visible(text), style=style), end="", soft_wrap=True)

    def step(self, kind: str, reward: float | None, text: str) -> None:
        """Prints a step; `kind` is draft, rejected, target or lost; NaN means no reward."""
        self.end()
        shown = visible(text.strip("\n")) or "(end of text)"
        tag = kind if reward is None or math.isnan(reward) else f"{kind} {reward:.2f}"
        if self.plain:
            self.console.print(Text(f"[{tag}] {shown}"), soft_wrap=True)
            return
        style = _STYLES[kind]
        head = Text(tag, style=f"{style} dim")
        body = Text(shown, style=f"{style} strike" if kind == "rejected" else style)
        if self.console.width < 3 * _TAG_WIDTH:  # a column beside the tags would be a thin one
            self.console.print(head, body, sep="\n")
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=_TAG_WIDTH, justify="right", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(head, body)
        self.console.print(grid)

    def line(self, text: str = "", style: str = "") -> None:
        """Prints any other text; plain output, which programs may read, is not wrapped."""
        self.end()
        self.console.print(Text(visible(text), style="" if self.plain else style),
                           soft_wrap=self.plain)  # fmt: skip


def visible(text: str) -> str:
    """Text without control characters: what a model writes must not control the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
