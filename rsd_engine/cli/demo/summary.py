"""The demo's summary: where RSD was better than the target alone, and where worse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from rsd_engine.cli.show import StepView
from rsd_engine.engine.reward_watch import reward_problem

if TYPE_CHECKING:
    from rsd_engine.outputs import Metrics


@dataclass
class Score:
    """Right answers and costs of one run over the problems."""

    right: int = 0
    total: int = 0
    seconds: float = 0.0
    metrics: list[Metrics] = field(default_factory=list)


def print_summary(view: StepView, guided: Score, alone: Score) -> None:
    """Prints a table of both runs, what RSD was better in, and what worse."""
    ours, theirs = _total(guided), _total(alone)
    bold = "" if view.plain else "bold"
    table = Table(title="Summary", box=box.SIMPLE_HEAD, title_style=bold, header_style=bold)
    table.add_column("")
    for name in ("RSD", "target alone", "RSD / target"):
        table.add_column(name, justify="right")
    table.add_row("right answers", _share(guided.right, guided.total),
                  _share(alone.right, alone.total), _ratio(guided.right, alone.right))  # fmt: skip
    scored = ours.steps_accepted + ours.steps_rejected
    table.add_row("draft steps accepted", _share(ours.steps_accepted, scored), "-", "")
    _token_rows(table, ours, theirs)
    for name, a, b in (
        ("FLOPs, tokens written", ours.flops.generated, theirs.flops.generated),
        ("FLOPs, prompts too", ours.flops.all, theirs.flops.all),
    ):
        table.add_row(name, _flops(a), _flops(b), _ratio(a, b))
    table.add_row("seconds", f"{guided.seconds:.2f}", f"{alone.seconds:.2f}",
                  _ratio(guided.seconds, alone.seconds))  # fmt: skip
    view.console.print(table)
    for line, style in _verdict(guided, alone):
        view.line(line, style)
    if problem := reward_problem(ours):
        view.line(f"note: {problem}")


def _token_rows(table: Table, ours: Metrics, theirs: Metrics) -> None:
    rows = (
        ("draft tokens kept", ours.draft.tokens_generated, theirs.draft.tokens_generated),
        ("draft tokens rejected", ours.draft.tokens_discarded, theirs.draft.tokens_discarded),
        ("target tokens written", ours.target.tokens_generated, theirs.target.tokens_generated),
    )
    for name, a, b in rows:
        table.add_row(name, str(a), str(b), _ratio(a, b) if b else "")
    table.add_row("tokens scored by the PRM", str(_scored_tokens(ours)), "0", "")


def _scored_tokens(metrics: Metrics) -> int:
    return metrics.draft.tokens_generated + metrics.draft.tokens_discarded


def _verdict(guided: Score, alone: Score) -> list[tuple[str, str]]:
    """A line on what was better and one on what was worse, each if there is anything."""
    ours, theirs = _total(guided).flops, _total(alone).flops
    # (name, RSD, target alone, whether more is better)
    measured = (
        ("right answers", guided.right, alone.right, True),
        ("FLOPs for tokens written", ours.generated, theirs.generated, False),
        ("FLOPs with prompts", ours.all, theirs.all, False),
        ("seconds", guided.seconds, alone.seconds, False),
    )
    better: list[str] = []
    worse: list[str] = []
    for name, a, b, more in measured:
        if a == b:
            continue
        (better if (a > b) == more else worse).append(f"{name} ({_ratio(a, b) or f'{a} to {b}'})")
    lines = []
    if better:
        lines.append(("RSD is better here in: " + ", ".join(better), "green"))
    if worse:
        lines.append(("RSD is worse here in: " + ", ".join(worse), "red"))
    return lines


def _total(score: Score) -> Metrics:
    first, *rest = score.metrics
    return sum(rest, start=first)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f} x" if b else ""


def _flops(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"
