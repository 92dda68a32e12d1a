"""Readers of all kinds, in plain code and in asyncio: some read to the end, some go before."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from rsd_engine import Engine, FinishedEvent, RequestOutput, StepEvent
from rsd_engine.engine.stream import Stream
from tests.stress.cases import BAD, Case

PATIENCE = 0.15  # seconds, at most, until a reader goes


@dataclass
class Tally:
    """What all readers found; threads add to it."""

    results: list[tuple[int, RequestOutput]] = field(default_factory=list)  # with index of its case
    requests: Counter[str] = field(default_factory=Counter)  # by kind of reader


@dataclass(frozen=True)
class Visitor:
    """One thread's or task's way to the engine."""

    engine: Engine
    cases: Sequence[Case]
    rng: Random
    tally: Tally

    def pick(self) -> tuple[int, Case]:
        index = self.rng.randrange(len(self.cases))
        return index, self.cases[index]

    def stream(self) -> tuple[int, Stream]:
        index, case = self.pick()
        return index, self.engine.stream(case.prompt, case.params)

    def keep(self, index: int, result: RequestOutput | None) -> None:
        assert result is not None
        self.tally.results.append((index, result))

    def soon(self) -> float:
        return self.rng.random() * PATIENCE


# ---------------------------------------------------------------- plain code


def generates(visitor: Visitor) -> None:
    index, case = visitor.pick()
    visitor.keep(index, case.run(visitor.engine))


def streams(visitor: Visitor) -> None:
    """Its kept texts add up to the text of the result."""
    index, stream = visitor.stream()
    *steps, last = stream
    assert isinstance(last, FinishedEvent)
    for i, output in enumerate(last.output.outputs):
        kept = [e for e in steps if isinstance(e, StepEvent) and (e.index, e.kind) == (i, "kept")]
        assert "".join(event.text for event in kept) == output.text
    visitor.keep(index, last.output)


def completes(visitor: Visitor) -> None:
    picked = [visitor.pick() for _ in range(3)]
    prompts, params = [c.prompt for _, c in picked], [c.params for _, c in picked]
    for position, result in visitor.engine.as_completed(prompts, params):
        visitor.keep(picked[position][0], result)


def leaves_completed(visitor: Visitor) -> None:
    picked = [visitor.pick() for _ in range(3)]
    prompts, params = [c.prompt for _, c in picked], [c.params for _, c in picked]
    completed = visitor.engine.as_completed(prompts, params)
    for position, result in itertools.islice(completed, visitor.rng.randrange(3)):
        visitor.keep(picked[position][0], result)


def breaks(visitor: Visitor) -> None:
    _, stream = visitor.stream()
    for _ in itertools.islice(stream, 1 + visitor.rng.randrange(3)):
        pass


def never_reads(visitor: Visitor) -> None:
    visitor.stream()


def goes_in_a_cycle(visitor: Visitor) -> None:
    _, stream = visitor.stream()
    cycle: list[object] = [iter(stream)]
    cycle.append(cycle)


def closes(visitor: Visitor) -> None:
    _, stream = visitor.stream()
    with stream:
        next(iter(stream))


def aborts(visitor: Visitor) -> None:
    """What was kept until then is the beginning of the result."""
    index, stream = visitor.stream()
    events = iter(stream)
    for _ in range(visitor.rng.randrange(4)):
        next(events, None)
    visitor.engine.abort(stream.request_id)
    for _ in events:
        pass
    visitor.keep(index, stream.output)


def asks_badly(visitor: Visitor) -> None:
    with pytest.raises(ValueError):
        visitor.rng.choice(BAD)(visitor.engine)


# ---------------------------------------------------------------- asyncio


async def astream(visitor: Visitor) -> tuple[int, Stream]:
    index, case = visitor.pick()
    return index, await asyncio.to_thread(visitor.engine.stream, case.prompt, case.params)


async def reads(visitor: Visitor) -> None:
    index, stream = await astream(visitor)
    async for _ in stream:
        pass
    visitor.keep(index, stream.output)


async def is_cancelled(visitor: Visitor) -> None:
    task = asyncio.create_task(reads(visitor))
    await asyncio.sleep(visitor.soon())
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def times_out(visitor: Visitor) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(reads(visitor), visitor.soon())


async def breaks_async(visitor: Visitor) -> None:
    _, stream = await astream(visitor)
    async for _ in stream:
        break


async def aborts_async(visitor: Visitor) -> None:
    index, stream = await astream(visitor)
    task = asyncio.create_task(_drain(stream))
    await asyncio.sleep(visitor.soon())
    await asyncio.to_thread(visitor.engine.abort, stream.request_id)
    await task
    visitor.keep(index, stream.output)


async def _drain(stream: Stream) -> None:
    async for _ in stream:
        pass


Plain = Callable[[Visitor], None]
Async = Callable[[Visitor], Coroutine[Any, Any, None]]
# With how many requests each makes; one of several is picked by these odds.
PLAIN: dict[Plain, int] = {
    generates: 1, streams: 1, completes: 3, leaves_completed: 3, breaks: 1, never_reads: 1,
    goes_in_a_cycle: 1, closes: 1, aborts: 1, asks_badly: 1,
}  # fmt: skip
ASYNC: dict[Async, int] = dict.fromkeys(
    [reads, is_cancelled, times_out, breaks_async, aborts_async], 1
)
EVENT_LOOP_TASKS = 4


def visit(visitor: Visitor, count: int) -> None:
    """About `count` requests, one reader after the other."""
    while count > 0:
        way = visitor.rng.choice(list(PLAIN))
        way(visitor)
        visitor.tally.requests[way.__name__] += PLAIN[way]
        count -= PLAIN[way]


def visit_async(visitor: Visitor, count: int) -> None:
    """About `count` requests, by several tasks of an event loop at once."""

    async def one_after_the_other() -> None:
        for _ in range(count // EVENT_LOOP_TASKS):
            way = visitor.rng.choice(list(ASYNC))
            await way(visitor)
            visitor.tally.requests[way.__name__] += 1

    async def together() -> None:
        await asyncio.gather(*(one_after_the_other() for _ in range(EVENT_LOOP_TASKS)))

    asyncio.run(together())
