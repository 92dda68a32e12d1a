"""A request ends with its reader, in whatever way the reader ends."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams, StepEvent
from rsd_engine.engine.results.request import RequestBuilder
from rsd_engine.engine.stream import Stream
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, short_launches
from tests.engine.harness.scripted import replaced
from tests.tiny_models import TinyModels

LONG = SamplingParams(temperature=1.0, seed=3, max_tokens=300, ignore_eos=True)
SHORT = SamplingParams(temperature=1.0, seed=4, max_tokens=8)
HELD: list[object] = []  # what a test holds on to until its end


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    HELD.clear()


class Left(Exception):
    """The reader goes."""


# ---------------------------------------------------------------- ways to end, in plain code


def never_read(engine: Engine) -> None:
    engine.stream(PROMPTS[0], LONG)


def read_by_hand(engine: Engine) -> None:
    next(iter(engine.stream(PROMPTS[0], LONG)))


def in_a_cycle(engine: Engine) -> None:
    loop: list[object] = [engine.stream(PROMPTS[0], LONG)]
    loop.append(loop)


def iterated_in_a_cycle(engine: Engine) -> None:
    events = iter(engine.stream(PROMPTS[0], LONG))
    next(events)
    loop: list[object] = [events]
    loop.append(loop)


def left_by_break(engine: Engine) -> None:
    HELD.append(stream := engine.stream(PROMPTS[0], LONG))
    for _ in stream:
        break


def left_by_an_error(engine: Engine) -> None:
    HELD.append(stream := engine.stream(PROMPTS[0], LONG))
    try:
        for _ in stream:
            raise Left
    except Left as error:
        HELD.append(error)  # and with it the frames that it passed


def left_by_a_generator(engine: Engine) -> None:
    def texts() -> Iterator[str]:
        for event in engine.stream(PROMPTS[0], LONG):
            if isinstance(event, StepEvent):
                yield event.text

    assert next(texts()) is not None


def completed_never_started(engine: Engine) -> None:
    engine.as_completed(list(PROMPTS), LONG)


def completed_never_started_in_a_cycle(engine: Engine) -> None:
    loop: list[object] = [engine.as_completed(list(PROMPTS), LONG)]
    loop.append(loop)


def completed_left(engine: Engine) -> None:
    for _ in engine.as_completed(list(PROMPTS), [SHORT] + [LONG] * (len(PROMPTS) - 1)):
        break


def progress_fails(engine: Engine) -> None:
    class Bar:
        def update(self, count: int) -> None:
            raise Left

        def close(self) -> None:
            pass

    with pytest.raises(Left):
        engine.generate(["a", "b"], [SHORT, LONG], use_tqdm=lambda **_: Bar())


def samples_of_one_request(engine: Engine) -> None:
    next(iter(engine.stream(PROMPTS[0], SamplingParams(n=9, seed=0, max_tokens=300))))


# ---------------------------------------------------------------- ways to end, in asyncio


async def read(stream: Stream) -> None:
    async for _ in stream:
        pass


async def task_never_begun(engine: Engine) -> None:
    task = asyncio.create_task(read(engine.stream(PROMPTS[0], LONG)))
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def task_cancelled(engine: Engine) -> None:
    HELD.append(stream := engine.stream(PROMPTS[0], LONG))
    task = asyncio.create_task(read(stream))
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def task_timed_out(engine: Engine) -> None:
    HELD.append(stream := engine.stream(PROMPTS[0], LONG))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(stream), 0.01)


async def event_timed_out(engine: Engine) -> None:
    HELD.append(events := aiter(engine.stream(PROMPTS[0], LONG)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), 1e-4)


async def left_by_async_break(engine: Engine) -> None:
    HELD.append(stream := engine.stream(PROMPTS[0], LONG))
    async for _ in stream:
        break


async def left_by_an_async_error(engine: Engine) -> None:
    HELD.append(stream := engine.stream(PROMPTS[0], LONG))
    with suppress(Left):
        async for _ in stream:
            raise Left


async def loop_ends_early(engine: Engine) -> None:
    HELD.append(asyncio.create_task(read(engine.stream(PROMPTS[0], LONG))))
    await asyncio.sleep(0.01)


async def thread_of_a_stream_cancelled(engine: Engine) -> None:
    task = asyncio.create_task(asyncio.to_thread(engine.stream, PROMPTS[0], LONG))
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def a_hundred_tasks_cancelled(engine: Engine) -> None:
    streams = [engine.stream(PROMPTS[i % 6], LONG) for i in range(100)]
    HELD.extend(streams)
    tasks = [asyncio.create_task(read(stream)) for stream in streams]
    for i, task in enumerate(tasks):
        await asyncio.sleep(0.002 * (i % 3))
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Way = Callable[[Engine], None]
AsyncWay = Callable[[Engine], Coroutine[Any, Any, None]]
PLAIN: list[Way] = [
    never_read, read_by_hand, in_a_cycle, iterated_in_a_cycle, left_by_break, left_by_an_error,
    left_by_a_generator, completed_never_started, completed_never_started_in_a_cycle,
    completed_left, progress_fails, samples_of_one_request,
]  # fmt: skip
ASYNC: list[AsyncWay] = [
    task_never_begun, task_cancelled, task_timed_out, event_timed_out, left_by_async_break,
    left_by_an_async_error, loop_ends_early, thread_of_a_stream_cancelled,
    a_hundred_tasks_cancelled,
]  # fmt: skip


@pytest.mark.parametrize("way", PLAIN, ids=lambda way: way.__name__)
def test_a_request_ends_with_its_reader(engine: Engine, way: Way) -> None:
    with short_launches(engine, 2):
        way(engine)
    assert_nothing_left(engine)


@pytest.mark.parametrize("way", ASYNC, ids=lambda way: way.__name__)
def test_a_request_ends_with_its_task(engine: Engine, way: AsyncWay) -> None:
    with short_launches(engine, 2), slowly(engine):
        asyncio.run(way(engine))
    assert_nothing_left(engine)


@pytest.mark.parametrize(
    "way",
    [never_read, iterated_in_a_cycle, left_by_an_error, completed_left],
    ids=lambda w: w.__name__,
)
def test_a_request_ends_while_others_run(engine: Engine, way: Way) -> None:
    """Another thread holds the lock most of the time; its result is what it is alone."""
    params = replace(LONG, max_tokens=100)
    [wanted] = generate(engine, [PROMPTS[2]], params)
    found = []
    other = threading.Thread(target=lambda: found.extend(generate(engine, [PROMPTS[2]], params)))
    other.start()
    way(engine)
    other.join(timeout=60)
    assert decisions(found[0]) == decisions(wanted)
    assert_nothing_left(engine)


def test_an_event_loop_that_is_never_shut_down(engine: Engine) -> None:
    """Nobody closes what its tasks have left half-way."""
    loop = asyncio.new_event_loop()
    with short_launches(engine, 2):
        loop.run_until_complete(left_by_async_break(engine))
    assert_nothing_left(engine)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_a_slot_is_free_within_a_few_ticks(engine: Engine) -> None:
    """A launch that runs for somebody else returns for a reader that went."""
    core, ticks = engine.parts.core, 0
    forward, begun = core.loop.forwards[Role.DRAFT], threading.Event()

    def counted(batch: RowBatch) -> None:
        nonlocal ticks
        ticks += 1
        if ticks > 5:
            begun.set()
        time.sleep(0.005)
        forward(batch)

    params = SamplingParams(mode="draft", max_tokens=200, ignore_eos=True, seed=1)
    other, victim = engine.stream("x", params), engine.stream("y", params)
    with replaced(engine, Role.DRAFT, counted):
        reader = threading.Thread(target=lambda: list(other))
        reader.start()
        assert begun.wait(timeout=30)
        before, held = ticks, [key for key in core.slot_keys if key is not None]
        assert len(held) == 2
        del victim
        while sum(key is not None for key in core.slot_keys) > 1:
            time.sleep(0.001)
        assert ticks - before < 6
        reader.join(timeout=60)
    assert_nothing_left(engine)


@pytest.mark.parametrize("where", ["a pass", "add", "abort"])
def test_garbage_collection_waits_for_nothing(
    engine: Engine, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come in the thread of the core, or while its thread holds the lock."""
    core = engine.parts.core
    [wanted] = generate(engine, ["abc"], SHORT)

    def collecting(call: Callable[..., Any]) -> Callable[..., Any]:
        once = [gc.collect]

        def collected(*args: Any, **kwargs: Any) -> Any:
            if once:
                once.pop()()
            return call(*args, **kwargs)

        return collected

    def act() -> None:
        iterated_in_a_cycle(engine)
        completed_never_started_in_a_cycle(engine)
        with patched():
            results.extend(generate(engine, ["abc"], SHORT))
            engine.stream("x", LONG).close()

    @contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            if where == "a pass":
                forwards = core.loop.forwards
                patch.setitem(forwards, Role.DRAFT, collecting(forwards[Role.DRAFT]))
            else:
                patch.setattr(core, where, collecting(getattr(core, where)))
            yield

    results: list[Any] = []
    gc.disable()
    try:
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive(), "it waits for itself"
    finally:
        gc.enable()
    assert decisions(results[0]) == decisions(wanted)
    assert_nothing_left(engine)


def test_a_reader_that_goes_after_an_interrupt(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C has left the core running: what is collected then does not wait for it."""
    stream = engine.stream("x", LONG)
    waits = 0

    def torn(*_: object) -> None:
        nonlocal waits
        waits += 1
        raise KeyboardInterrupt

    with slowly(engine), monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", torn)
        with pytest.raises(KeyboardInterrupt):
            next(iter(stream))
        del stream
        gc.collect()
    assert waits == 2  # of the reader, and of its close
    assert_nothing_left(engine)


PROGRAM = """
import sys, threading
from rsd_engine import Engine, SamplingParams
params = SamplingParams(max_tokens=400, ignore_eos=True, temperature=1.0, seed=1)
engine = Engine(*sys.argv[1:], device="cpu", max_num_seqs=4)
streams = [engine.stream("abc", params) for _ in range(3)]
half = iter(engine.stream("b", params))
next(half)
completed = engine.as_completed(["a", "b"], params)
cycle = [engine.stream("abc", params)]
cycle.append(cycle)
"""


def test_a_program_ends_with_readers_left(tiny: TinyModels) -> None:
    """Whatever goes while Python shuts down touches nothing that is half gone."""
    models = [str(path) for path in tiny.sources().values()]
    program = [sys.executable, "-c", PROGRAM, *models]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(program, env=paths, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr and "ignored" not in ended.stderr


def assert_nothing_left(engine: Engine) -> None:
    """After one more call nothing of any earlier request is left: slot, pages, records, events."""
    gc.collect()
    generate(engine, ["x"], SamplingParams(max_tokens=1, seed=0))
    assert not engine.parts.core.has_work and all_pages_free(engine)
    assert not any(engine.parts.core.slot_keys)
    HELD.clear()
    assert not [o for o in gc.get_objects() if type(o) in (RequestBuilder, StepEvent)]


@contextmanager
def slowly(engine: Engine) -> Iterator[None]:
    """Passes of the draft take a few milliseconds each."""
    forward = engine.parts.core.loop.forwards[Role.DRAFT]

    def slow(batch: RowBatch) -> None:
        time.sleep(0.003)
        forward(batch)

    with replaced(engine, Role.DRAFT, slow):
        yield
