"""What was found, as a table with a sentence of reading, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich import box
from rich.table import Table

from rsd_engine.cli.show import is_plain, make_console
from rsd_engine.evaluate.tuning import Expected

_TITLES = ("threshold", "target tok %", "95 %", "kept %", "right %", "answers known %")


def print_json(
    budget: float, expected: Expected, came: Expected | None, swept: Sequence[Expected]
) -> None:
    """One object with all numbers."""
    found = {
        "budget": budget,
        "threshold": expected.threshold,
        "expected": _json(expected),
        "held_out": None if came is None else _json(came),
        "sweep": [_json(one) for one in swept],
    }
    typer.echo(json.dumps(found, indent=1))


def print_tuned(
    budget: float, expected: Expected, came: Expected | None, swept: Sequence[Expected]
) -> None:
    """The sweep, the recommended threshold, and what came on held-out questions."""
    console = make_console()
    plain = is_plain(console)
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN,
        header_style="" if plain else "bold",
    )
    for title in _TITLES:
        table.add_column(title, justify="right")
    for one in swept:
        chosen = one.threshold == expected.threshold
        table.add_row(*_cells(one), style="bold" if chosen and not plain else "")
    console.print(table)
    lines = [
        f"recommended: --policy threshold:{expected.threshold:.9g}, the largest threshold with at "
        f"most {100 * budget:g}% of the tokens from the target",
        f"expected: {_sentence(expected)}",
    ]
    if expected.known < 1:
        lines.append(
            f"of {1 - expected.known:.0%} of the answers it is assumed that their steps stay as "
            "they are at another threshold; more --passes ask them again"
        )
    if came is not None:
        off = came.share / budget - 1
        lines.append(f"held out: {_sentence(came)}; {off:+.1%} of the budget")
    for line in lines:
        console.print(line, soft_wrap=True)


def _sentence(one: Expected) -> str:
    right = "" if one.accuracy is None else f", {one.accuracy:.1%} of the answers right"
    return (
        f"{one.share:.1%} of the tokens from the target (95 %: {one.low:.1%} to {one.high:.1%}), "
        f"{one.acceptance:.1%} of the draft's steps kept{right}"
    )


def _cells(one: Expected) -> list[str]:
    return [
        f"{one.threshold:.9g}",
        f"{100 * one.share:.1f}",
        f"{100 * one.low:.1f}-{100 * one.high:.1f}",
        f"{100 * one.acceptance:.1f}",
        "" if one.accuracy is None else f"{100 * one.accuracy:.1f}",
        f"{100 * one.known:.0f}",
    ]


def _json(one: Expected) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(one).items()
    }
