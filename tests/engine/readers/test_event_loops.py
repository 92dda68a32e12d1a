"""One engine in several event loops and threads at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rsd_engine import Engine, RequestOutput, SamplingParams
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, short_launches

PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=25)


def in_event_loop(engine: Engine) -> list[RequestOutput]:
    """All prompts as streams of one loop; half of them are read to their end, others cancelled."""

    async def read(prompt: str) -> RequestOutput:
        stream = engine.stream(prompt, PARAMS)
        async for _ in stream:
            pass
        assert stream.output is not None
        return stream.output

    async def all_of_them() -> list[RequestOutput]:
        lost = [asyncio.create_task(read(prompt)) for prompt in PROMPTS]
        kept = [asyncio.create_task(read(prompt)) for prompt in PROMPTS]
        for task in lost:
            await asyncio.sleep(0.001)
            task.cancel()
        await asyncio.gather(*lost, return_exceptions=True)
        return list(await asyncio.gather(*kept))

    return asyncio.run(all_of_them())


def in_plain_code(engine: Engine) -> list[RequestOutput]:
    return generate(engine, PROMPTS, PARAMS)


def as_completed(engine: Engine) -> list[RequestOutput]:
    found = dict(engine.as_completed(PROMPTS, PARAMS))
    return [found[i] for i in range(len(PROMPTS))]


def test_loops_and_threads_share_an_engine(engine: Engine) -> None:
    wanted = [decisions(generate(engine, [prompt], PARAMS)[0]) for prompt in PROMPTS]
    ways: list[Callable[[Engine], list[RequestOutput]]] = [
        in_event_loop, in_event_loop, in_plain_code, as_completed,
    ]  # fmt: skip
    with short_launches(engine, 4), ThreadPoolExecutor(len(ways)) as pool:
        futures = [pool.submit(way, engine) for way in ways]
        results = [future.result(timeout=120) for future in futures]
    for found in results:
        assert [decisions(result) for result in found] == wanted
    assert not engine.parts.core.has_work and all_pages_free(engine)


def test_a_stream_goes_from_one_loop_to_another(engine: Engine) -> None:
    """It belongs to none: made in a thread, its events read in the loop of another."""
    [wanted] = generate(engine, [PROMPTS[0]], PARAMS)
    stream = engine.stream(PROMPTS[0], PARAMS)
    events = aiter(stream)
    first = asyncio.run(_next(events))
    rest: list[object] = []
    reader = threading.Thread(target=lambda: rest.extend(events))
    reader.start()
    reader.join(timeout=60)
    assert first is not None and rest and stream.output is not None
    assert decisions(stream.output) == decisions(wanted)


async def _next(events: object) -> object:
    return await anext(events)  # type: ignore[call-overload]
