"""Sends many requests, as a schedule and a limit on those that run at once allow."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice

from rsd_engine.client.arrivals import arrivals
from rsd_engine.client.request import Answer, Target, ask


@dataclass(frozen=True)
class Load:
    """How hard a server is pressed.

    Attributes:
        request_rate: requests per second on average, by a Poisson process; infinity sends all at
            once.
        max_concurrency: most requests that run at once; the others wait here, and their times
            begin when they are sent. None is no limit.
        seed: of the schedule.
    """

    request_rate: float
    max_concurrency: int | None
    seed: int = 0


async def run_load(
    target: Target, prompts: Sequence[str], load: Load, on_answer: Callable[[Answer], None]
) -> tuple[list[Answer], float]:
    """Sends every prompt once.

    Args:
        target: what is asked.
        prompts: in the order in which they are sent.
        load: how they are sent.
        on_answer: called with every answer, as it has come.

    Returns:
        The answers in order of the prompts, and the seconds from the first request that was due
        to the end of the last answer.
    """
    most = load.max_concurrency
    gate: AbstractAsyncContextManager[object] = (
        nullcontext() if most is None else asyncio.Semaphore(most)
    )
    started = time.perf_counter()

    async def send(prompt: str, after: float) -> Answer:
        await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
        async with gate:
            answer = await ask(target, prompt)
        on_answer(answer)
        return answer

    times = arrivals(len(prompts), load.request_rate, load.seed)
    answers = await asyncio.gather(*map(send, prompts, times))
    return answers, max(answer.ended for answer in answers) - started


async def warm_up(target: Target, prompts: Sequence[str], num: int, load: Load) -> None:
    """Sends requests that do not count, all at once, as far as the limit allows.

    Raises:
        ConnectionError: one of them failed.
    """
    if not num:
        return
    chosen = list(islice(cycle(prompts), num))
    at_once = replace(load, request_rate=math.inf)
    answers, _ = await run_load(target, chosen, at_once, lambda _: None)
    for answer in answers:
        if answer.error is not None:
            raise ConnectionError(f"a warm-up failed: {answer.error}")
