"""The table of a run, and the list of what can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from rsd_engine.cli.show import is_plain, make_console
from rsd_engine.evaluate.methods import METHODS
from rsd_engine.evaluate.questions import DATA_SETS, DEMO, DEMO_COUNT
from rsd_engine.evaluate.record import RoleSeconds, label
from rsd_engine.evaluate.summary import Row

_WIDE = 400  # columns of plain output, which is read by programs and pasted into documents
_COLUMNS = (
    "right %", "95 %", "p", "draft tok", "target tok", "PRM tok", "FLOPs written", "FLOPs read",
    "kept %", "seconds", "draft/target/PRM s", "speed-up", "draft alone %",
)  # fmt: skip
_LEGEND = (
    "Tokens (kept ones; of the PRM those it read) and FLOPs are of one answer; (x) is how many "
    "times fewer than the target alone. p: exact McNemar test against the target alone. kept: of "
    "the draft's steps. draft/target/PRM s: of the seconds, those in passes of each. "
    "draft alone: answered rightly without a token of the target."
)


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the table: in Markdown, where stdout is no terminal."""
    table, console = _table(("method", *_COLUMNS))
    for row in rows:
        table.add_row(label(row.method, row.settings), *_cells(row))
    console.print(table)
    console.print(_LEGEND, style="" if is_plain(console) else "dim", soft_wrap=True)


def print_list() -> None:
    """Prints all methods and data sets."""
    table, console = _table(("method", "what it does", "source"), left=3)
    for method in METHODS.values():
        table.add_row(method.form, method.does, method.source)
    console.print(table)
    table, console = _table(("questions", "what they are", "hub id"), left=3)
    table.add_row(f"{DEMO}[:N]", f"the demo's word problems (N: {DEMO_COUNT})", "")
    for name, found in DATA_SETS.items():
        table.add_row(f"{name}[:N]", found.title, found.hub)
    table.add_row("FILE.jsonl[:N]", 'lines with "question" and "answer", maybe "choices"', "")
    console.print(table)


def _table(titles: Sequence[str], left: int = 1) -> tuple[Table, Console]:
    console = make_console()
    if not console.is_terminal:
        console.width = _WIDE
    plain = is_plain(console)
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN,
        header_style="" if plain else "bold",
    )
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index < left else "right")
    return table, console


def _cells(row: Row) -> list[str]:
    answers = row.questions * len(row.seeds)
    counts, fewer = row.counts, row.fewer_flops or (None, None)
    return [
        f"{100 * row.accuracy:.1f}",
        f"{100 * row.low:.1f}-{100 * row.high:.1f}",
        "" if row.p_value is None else f"{row.p_value:.2g}",
        f"{counts.draft_tokens / answers:.1f}",
        f"{counts.target_tokens / answers:.1f}",
        f"{counts.prm_tokens_read / answers:.1f}",
        _flops(counts.flops_generated / answers, fewer[0]),
        _flops(counts.flops_all / answers, fewer[1]),
        "" if row.acceptance is None else f"{100 * row.acceptance:.1f}",
        f"{row.seconds:.1f}",
        "" if row.role_seconds is None else _by_role(row.role_seconds),
        "" if row.speed_up is None else f"{row.speed_up:.2f}x",
        f"{100 * row.draft_alone:.1f}",
    ]


def _by_role(seconds: RoleSeconds) -> str:
    return f"{seconds.draft:.1f}/{seconds.target:.1f}/{seconds.prm:.1f}"


def _flops(value: float, fewer: float | None) -> str:
    units = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
    unit, size = next((one for one in units if value >= one[1]), units[-1])
    shown = f"{value / size:.1f}{unit}"
    return shown if fewer is None else f"{shown} ({fewer:.2f}x)"
