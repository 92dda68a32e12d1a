"""What the engine for asyncio holds."""

from __future__ import annotations

import asyncio
import gc
import weakref

from rsd_engine import SamplingParams
from rsd_engine.engine.stream import Stream
from rsd_engine.server.async_engine import AsyncEngine


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
