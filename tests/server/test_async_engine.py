"""What the engine for asyncio holds."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from rsd_engine import Engine, FinishedEvent, SamplingParams, StepEvent
from rsd_engine.engine.stream import Stream
from rsd_engine.server.async_engine import AsyncEngine, AsyncRequest, merged
from tests.server.test_live import wait_for


def test_an_idle_engine_holds_no_request(async_engine: AsyncEngine) -> None:
    async def answer() -> list[weakref.ref[Stream]]:
        params = SamplingParams(max_tokens=5, temperature=0.0, mode="draft")
        requests = await async_engine.submit(["2 + 3 =", "The answer"], params)
        results = [await request.result() for request in requests]
        assert [len(result.outputs[0].token_ids) for result in results] == [5, 5]
        return [weakref.ref(request.stream) for request in requests]

    held = asyncio.run(answer())
    # The thread may not have gone to sleep yet.
    for _ in range(100):
        gc.collect()
        if not any(ref() for ref in held):
            return
        asyncio.run(asyncio.sleep(0.01))
    raise AssertionError("a request that has ended is still held")


def test_requests_of_one_call_are_read_apart_and_at_any_pace(async_engine: AsyncEngine) -> None:
    async def read(request: AsyncRequest, pause: float) -> str:
        texts = []
        async for event in request:
            if isinstance(event, StepEvent):
                texts.append(event.text)
                await asyncio.sleep(pause)
        return "".join(texts)

    async def answer() -> None:
        params = SamplingParams(max_tokens=12, temperature=0.0, mode="draft", ignore_eos=True)
        requests = await async_engine.submit(["2 + 3 =", "The answer", "A"], params)
        read_apart = (read(r, pause) for r, pause in zip(requests, (0.0, 0.003, 0.01), strict=True))
        texts = await asyncio.wait_for(asyncio.gather(*read_apart), 30)
        results = [request.output for request in requests]
        assert texts == [result.outputs[0].text for result in results if result is not None]

    asyncio.run(answer())


def test_who_waits_for_the_end_alone_is_told_nothing_else(async_engine: AsyncEngine) -> None:
    async def answer() -> None:
        params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
        requests = await async_engine.submit(["2 + 3 =", "The answer"], params, stream=False)
        told = [(index, type(event)) async for index, event in merged(requests)]
        assert sorted(told, key=lambda found: found[0]) == [(0, FinishedEvent), (1, FinishedEvent)]
        for request in requests:
            assert request.first_text_at is not None

    asyncio.run(answer())


def test_requests_that_are_queued_while_it_closes_are_aborted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, queue, queued = AsyncEngine(engine), engine.streams, list[Stream]()
    pumps = num_pumps()

    def close_meanwhile(*args: Any, **options: Any) -> list[Stream]:
        threading.Thread(target=late.close).start()
        wait_for(lambda: num_pumps() == pumps - 1)
        queued.extend(queue(*args, **options))
        return queued

    monkeypatch.setattr(engine, "streams", close_meanwhile)
    with pytest.raises(RuntimeError, match="the engine for asyncio is closed"):
        asyncio.run(late.submit(["2 + 3 ="], SamplingParams(max_tokens=40, mode="draft")))
    assert queued and not engine.parts.core.has_work


def num_pumps() -> int:
    return sum(thread.name == "rsd-pump" for thread in threading.enumerate())
