"""What a request holds while it is answered, and gives back however that ends."""

from __future__ import annotations

import asyncio

import pytest

from rsd_engine import SamplingParams
from rsd_engine.server.answering import Answering
from rsd_engine.server.service import Service


@pytest.mark.parametrize("turns", range(8))
def test_a_client_that_goes_as_its_answer_ends_leaves_nothing(service: Service, turns: int) -> None:
    """Whichever turn of the event loop after the last event it goes in; `service` checks."""

    async def answer() -> None:
        answering = Answering(service, "id", "completion")
        params = SamplingParams(max_tokens=1, mode="draft", temperature=0.0)
        await answering.start(["2 + 3 =", "The answer"], params, stream=False)
        task = asyncio.ensure_future(answering.results())
        while service.engine.num_open:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(answer())
    assert service.num_running == 0
