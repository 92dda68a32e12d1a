"""Runs `rsd bench serve`: every load, one after the other, and what is shown of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rsd_engine.cli import values
from rsd_engine.cli.bench.dataset import questions
from rsd_engine.cli.bench.options import BenchServeOptions
from rsd_engine.cli.errors import FAILED, UsageError, print_stderr
from rsd_engine.cli.show import make_console, visible

if TYPE_CHECKING:
    from rsd_engine.client.load import Load
    from rsd_engine.client.request import Target
    from rsd_engine.client.summary import Summary

_MOST_ERRORS = 5  # kinds that are shown


def run_bench(options: BenchServeOptions) -> int:
    """Measures a server; returns the exit code.

    Raises:
        UsageError: an option is not allowed, or the `client` extra is not installed.
        ValueError: the server has no such model.
        ConnectionError: the server cannot be reached, or fails a warm-up.
    """
    try:
        from rsd_engine.cli.bench.sweep import loads
    except ModuleNotFoundError as error:
        raise UsageError(
            f"rsd bench serve needs the package {error.name!r}; install rsd-engine[client]"
        ) from None
    wanted = loads(options.request_rate, options.max_concurrency, options.num_prompts, options.seed)
    fields = values.json_object("--extra-body", options.extra_body or "{}")
    prompts = questions(options.dataset, options.num_prompts, options.seed)
    if options.save_result is not None:
        _check_new(options.save_result)
    summaries = asyncio.run(_run_all(options, wanted, prompts, fields))
    return FAILED if any(not summary.completed for summary in summaries) else 0


async def _run_all(
    options: BenchServeOptions, wanted: Sequence[Load], prompts: list[str], fields: dict[str, Any]
) -> list[Summary]:
    from rsd_engine.client.connect import find_model, open_client
    from rsd_engine.client.request import Target

    summaries: list[Summary] = []
    async with open_client(options.base_url, timeout=options.timeout, max_retries=0) as client:
        model = (await find_model(client, options.model)).id
        target = Target(client, model, options.endpoint, options.max_tokens, fields)
        for load in wanted:
            summaries.append(await _measure(options, target, prompts, load))
            _show(options, summaries[-1])
            report = _report(options, model, summaries)
            if options.save_result is not None:
                options.save_result.write_text(report + "\n", encoding="utf-8")
    if options.json:
        print(report)
    elif len(summaries) > 1:
        from rsd_engine.cli.bench.show import sweep_lines

        print("\n".join(sweep_lines(summaries)))
    return summaries


async def _measure(
    options: BenchServeOptions, target: Target, prompts: list[str], load: Load
) -> Summary:
    from rsd_engine.cli.bench.show import load_text
    from rsd_engine.client.load import run_load, warm_up
    from rsd_engine.client.speculation import speculation_counters
    from rsd_engine.client.summary import summarise

    await warm_up(target, prompts, options.num_warmups, load)
    before = await speculation_counters(target.client)
    console = make_console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    off = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task(load_text(load), total=len(prompts))
        answers, duration = await run_load(target, prompts, load, lambda _: bar.advance(task))
    after = await speculation_counters(target.client)
    counted = after - before if before and after else after
    return summarise(load, answers, duration, counted)


def _show(options: BenchServeOptions, summary: Summary) -> None:
    """Prints the table, and on stderr what failed."""
    from rsd_engine.cli.bench.show import table_lines

    if not options.json:
        print("\n".join(table_lines(summary)), flush=True)
    most_first = sorted(summary.errors.items(), key=lambda found: -found[1])
    for message, count in most_first[:_MOST_ERRORS]:
        print_stderr(visible(f"{count} x {message}"))
    if len(most_first) > _MOST_ERRORS:
        print_stderr(f"and {len(most_first) - _MOST_ERRORS} more kinds of errors")


def _report(options: BenchServeOptions, model: str, summaries: Sequence[Summary]) -> str:
    """All that was measured and how, as JSON."""
    return json.dumps(
        {
            "base_url": options.base_url,
            "model": model,
            "endpoint": options.endpoint,
            "dataset": None if options.dataset is None else str(options.dataset),
            "num_prompts": options.num_prompts,
            "max_tokens": options.max_tokens,
            "extra_body": options.extra_body,
            "num_warmups": options.num_warmups,
            "runs": [summary.to_dict() for summary in summaries],
        }
    )


def _check_new(path: Path) -> None:
    """Raises UsageError if the file of results exists, or cannot be made."""
    if path.exists():
        raise UsageError(f"--save-result {path} exists; give another file")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--save-result {path} cannot be made: no folder to write to")
