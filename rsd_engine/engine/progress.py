"""Results in the order of the prompts, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

from rsd_engine.outputs import RequestOutput

Progress = bool | Callable[..., Any]
"""Whether to show a bar, or a function to make one in place of `tqdm`."""


def collect(
    completed: Iterator[tuple[int, RequestOutput]], count: int, use_tqdm: Progress
) -> list[RequestOutput]:
    """The results of `count` prompts, which come as (position, result) in any order."""
    results: list[RequestOutput | None] = [None] * count
    make_bar = use_tqdm if callable(use_tqdm) else tqdm
    bar = make_bar(total=count, desc="Prompts", disable=not use_tqdm)
    try:
        for index, result in completed:
            results[index] = result
            bar.update(1)
    finally:
        bar.close()
    return [result for result in results if result is not None]
