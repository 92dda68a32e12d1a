"""Prints a comparison: a table, what it says in words, and how it was measured."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.table import Table

from rsd_engine.cli.demo.comparison import AT_ONCE, MODES, Comparison, Measured
from rsd_engine.cli.demo.numbers import reading, why_slower, written
from rsd_engine.cli.show import StepView
from rsd_engine.engine.reward_watch import reward_problem


def print_comparison(view: StepView, found: Comparison) -> None:
    """Prints it, at most 80 columns wide."""
    view.line()
    view.console.print(_table(found, "" if view.plain else "bold"))
    view.line()
    view.line(reading(found))
    if why := why_slower(found):
        view.line(why)
    if problem := reward_problem(found.modes["rsd"].metrics):
        view.line(f"note: {problem}")
    view.line(
        "Greedy decoding; the three take turns, each after a warm-up, prefix cache off; "
        f"{found.device}, threads: {found.threads}. FLOPs are 2 x parameters x tokens: the first "
        "row counts as the paper does, the second also what a model only reads.",
        "dim",
    )


def _table(found: Comparison, bold: str) -> Table:
    total = len(found.problems)
    table = Table(
        title=held_out(total), title_style=bold, header_style=bold,
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for name in (*MODES.values(), "RSD/target"):
        table.add_column(name, justify="right", no_wrap=True)
    rows: tuple[tuple[str, Callable[[Measured], float], Callable[[float], str]], ...] = (
        ("right answers", lambda one: one.right, lambda value: _share(value, total)),
        ("tokens by the target", lambda one: written(one.metrics.target), str),
        ("FLOPs, tokens written", lambda one: one.metrics.flops.generated, _flops),
        ("FLOPs, all tokens read", lambda one: one.metrics.flops.all, _flops),
        ("seconds, one at a time", lambda one: one.seconds, "{:.2f}".format),
        (f"seconds, {AT_ONCE} at once", lambda one: one.seconds_at_once, "{:.2f}".format),
    )
    for name, value, shown in rows:
        values = {mode: value(found.modes[mode]) for mode in MODES}
        cells = [shown(one) for one in values.values()]
        table.add_row(name, *cells, _ratio(values["rsd"], values["target"]))
    metrics = found.modes["rsd"].metrics
    scored = metrics.steps_accepted + metrics.steps_rejected
    table.add_row("draft steps accepted", "", "", _share(metrics.steps_accepted, scored), "")
    return table


def held_out(count: int) -> str:
    """How many problems it is."""
    return "1 held-out problem" if count == 1 else f"{count} held-out problems"


def _share(part: float, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "none"


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f} x" if b else ""


def _flops(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"
