"""The loads that a command line names: every rate with every limit."""

from __future__ import annotations

import math

from rsd_engine.cli.errors import UsageError
from rsd_engine.client.connect import MAX_CONNECTIONS
from rsd_engine.client.load import Load


def loads(rates: str, limits: str | None, num_prompts: int, seed: int) -> list[Load]:
    """In the order in which they are run.

    Args:
        rates: numbers above 0, or `inf`, separated by commas.
        limits: integers above 0, separated by commas; None is no limit.
        num_prompts: of every run.
        seed: of every schedule.

    Raises:
        UsageError: one of them is something else.
    """
    if limits is None and num_prompts > MAX_CONNECTIONS:
        raise UsageError(
            f"--num-prompts {num_prompts}: more than {MAX_CONNECTIONS} cannot run at once; give "
            "--max-concurrency, too"
        )
    numbers = [_rate(text) for text in rates.split(",")]
    most = [None] if limits is None else [_limit(text) for text in limits.split(",")]
    return [Load(rate, limit, seed) for rate in numbers for limit in most]


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise UsageError(f"--request-rate must be numbers above 0, or inf, got {text!r}")
    return rate


def _limit(text: str) -> int:
    if not (text.strip().isdecimal() and 1 <= int(text) <= MAX_CONNECTIONS):
        raise UsageError(
            f"--max-concurrency must be integers in [1, {MAX_CONNECTIONS}], got {text!r}"
        )
    return int(text)
