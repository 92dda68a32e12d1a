"""Prints a profile: tables for people, or one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from rsd_engine.cli.profile.run import Profile
from rsd_engine.models.weight_form import listed_by_size

_LEAST_SHARE = 0.01  # of the bytes of a pass


def print_profile(profile: Profile) -> None:
    """Prints the ops, the slowest first, then the passes of each role beside their roofline."""
    console = Console(highlight=False)
    timed = sum(op.seconds for op in profile.ops.values())
    table = Table(title="Ops", box=box.SIMPLE_HEAD)
    for name in ("role", "op", "calls", "us a call", "seconds", "share"):
        table.add_column(name, justify="left" if name in ("role", "op") else "right")
    for name, op in sorted(profile.ops.items(), key=lambda item: -item[1].seconds):
        role, _, kind = name.rpartition(".")
        table.add_row(
            role.lower() or "all", kind, str(op.calls), f"{op.seconds / op.calls * 1e6:.1f}",
            f"{op.seconds:.3f}", f"{op.seconds / timed:.1%}",
        )  # fmt: skip
    console.print(table)
    console.print(_roles(profile))
    console.print(
        f"{profile.device} reads {profile.bandwidth / 1e9:.1f} GB/s; {profile.tokens} tokens kept "
        f"in {profile.seconds:.2f} s, of which ops took {timed:.2f} s."
    )


def _roles(profile: Profile) -> Table:
    table = Table(
        title="Forward passes and their roofline: the least time to read the weights",
        box=box.SIMPLE_HEAD,
    )
    names = ("role", "weights in", "MB", "passes", "ms a pass", "roofline ms", "x roofline")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for role, passes in profile.passes.items():
        seconds, least = profile.ops[f"{role}.forward"].seconds, profile.roofline_seconds(role)
        table.add_row(
            role.lower(), _formats(profile.reads[role]),
            f"{profile.read_bytes(role) / 1e6:.1f}", str(passes),
            f"{seconds / passes * 1e3:.3f}", f"{least / passes * 1e3:.3f}",
            f"{seconds / least:.2f}",
        )  # fmt: skip
    return table


def _formats(reads: Mapping[str, int]) -> str:
    """Those that count: norms and biases, which are few, are left out."""
    least = _LEAST_SHARE * sum(reads.values())
    return listed_by_size((name, size) for name, size in reads.items() if size >= least)


def print_json(profile: Profile) -> None:
    typer.echo(
        json.dumps(
            {
                "device": profile.device,
                "bandwidth": profile.bandwidth,
                "seconds": profile.seconds,
                "tokens": profile.tokens,
                "ops": {
                    name: {"calls": op.calls, "seconds": op.seconds}
                    for name, op in profile.ops.items()
                },
                "roles": {
                    role: {
                        "passes": passes,
                        "read_bytes": profile.reads[role],
                        "seconds": profile.ops[f"{role}.forward"].seconds,
                        "roofline_seconds": profile.roofline_seconds(role),
                    }
                    for role, passes in profile.passes.items()
                },
            }
        )
    )
