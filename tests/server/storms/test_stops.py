"""A full server and one that is told to stop: every request is answered, or refused in so many
words."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import httpx
import pytest

from rsd_engine import Engine, SamplingParams
from rsd_engine.server.async_engine import AsyncEngine
from tests.server.conftest import OPTIONS, listening
from tests.server.storms.cases import QUESTIONS, Case, Told
from tests.server.storms.clients import Refused, ask, listen
from tests.server.storms.process import server_process

Answer = Told | str  # or why there is none


def seeded(seed: int, tokens: int) -> Case:
    """Its text is its own: it follows from its seed."""
    fields: dict[str, Any] = {
        "seed": seed, "temperature": 1.5, "max_tokens": tokens, "ignore_eos": True,
    }  # fmt: skip
    body = {**fields, "prompt": QUESTIONS[0], "rsd": {"mode": "target"}}
    params = SamplingParams(mode="target", **fields)
    return Case("/v1/completions", body, [QUESTIONS[0]], params)


def alone(engine: Engine, cases: list[Case]) -> list[Told]:
    """Each is another text than the others."""
    found = [case.alone(engine) for case in cases]
    assert len({text for [(text, _)] in found}) == len(cases)
    return found


async def all_at_once(url: str, cases: list[Case], done: list[Answer]) -> list[Answer]:
    """What each gets, every other one as a stream; also in `done`, as it comes."""

    async def one(http: httpx.AsyncClient, index: int) -> Answer:
        way = listen if index % 2 else ask
        try:
            answer: Answer = await way(http, cases[index], f"request-{index}")
        except Refused:
            answer = "refused"
        except httpx.ConnectError:
            answer = "not let in"
        done.append(answer)
        return answer

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as http:
        return await asyncio.gather(*(one(http, i) for i in range(len(cases))))


def check_answers(answers: list[Answer], wanted: list[Told]) -> Counter[str]:
    """Who was answered read his own text; how many were, and why the others were not."""
    kinds: Counter[str] = Counter()
    for index, (found, text) in enumerate(zip(answers, wanted, strict=True)):
        if not isinstance(found, str):
            assert found == text, f"request {index}"
        kinds[found if isinstance(found, str) else "answered"] += 1
    return kinds


def test_a_full_server_refuses_and_mixes_nothing_up(
    engine: Engine, async_engine: AsyncEngine
) -> None:
    cases = [seeded(seed, 24) for seed in range(16)]
    wanted = alone(engine, cases)
    with listening(async_engine, replace(OPTIONS, max_queue=3)) as live:
        kinds = check_answers(asyncio.run(all_at_once(live.url, cases, [])), wanted)
    assert kinds["answered"] >= 7 and kinds["refused"] and kinds["not let in"] == 0


def test_a_server_that_stops_under_load_leaves_no_one_without_a_word(
    engine: Engine, async_engine: AsyncEngine
) -> None:
    """No time to end: some have ended when the signal comes, the others get an error."""
    cases = [seeded(seed, 24 + 16 * seed) for seed in range(8)]
    wanted = alone(engine, cases)
    with listening(async_engine, replace(OPTIONS, drain_seconds=0.0)) as live:
        done: list[Answer] = []

        async def stop() -> None:
            while live.service.num_waiting < 4:
                await asyncio.sleep(0.001)
            while len(done) < 2:
                await asyncio.sleep(0.001)
            live.server.handle_exit(15, None)

        async def together() -> list[Answer]:
            answers, _ = await asyncio.gather(all_at_once(live.url, cases, done), stop())
            return answers

        kinds = check_answers(asyncio.run(together()), wanted)
    assert kinds["answered"] and kinds["refused"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("drain", [0.3, 30.0])
def test_sigterm_under_load(engine: Engine, drain: float) -> None:
    """A process of its own, 64 clients, and some who come too late.

    With 30 seconds all of them end, with 0.3 few.
    """
    rng = Random(3)
    cases = [seeded(seed, rng.choice([96, 128, 256])) for seed in range(64)]
    late = [seeded(100 + seed, 8) for seed in range(8)]
    wanted = alone(engine, cases + late)
    options = ("--max-num-seqs=16", f"--drain-seconds={drain}")
    with server_process(*options) as server:
        done: list[Answer] = []

        async def stop_and_come_late() -> tuple[list[Answer], float]:
            await asyncio.to_thread(server.wait_for_samples, len(cases))
            while len(done) < 4:
                await asyncio.sleep(0.001)
            server.process.terminate()
            signalled = time.monotonic()
            return await all_at_once(server.url, late, []), signalled

        async def together() -> tuple[list[Answer], tuple[list[Answer], float]]:
            return await asyncio.gather(all_at_once(server.url, cases, done), stop_and_come_late())

        answers, (too_late, signalled) = asyncio.run(together())
        code = server.process.wait(drain + 15)
        seconds = time.monotonic() - signalled
    kinds = check_answers(answers, wanted[: len(cases)])
    kinds_late = check_answers(too_late, wanted[len(cases) :])
    print(json.dumps({"drain seconds": drain, "clients": kinds, "late": kinds_late,
                      "exit code": code, "seconds to the end": round(seconds, 1)}))  # fmt: skip
    assert code == 0
    assert "Traceback" not in "\n".join(server.lines)
    assert kinds["answered"] and kinds["not let in"] == 0
    assert bool(kinds["refused"]) == (drain < 1)
    assert kinds_late == {"refused": len(late)}


@pytest.mark.slow
def test_a_connection_at_rest_stays_open(async_engine: AsyncEngine) -> None:
    """Clients keep one for 5 seconds; a server that closes it then loses a request now and then."""
    with (
        listening(async_engine, OPTIONS) as live,
        httpx.Client(base_url=live.url, limits=httpx.Limits(keepalive_expiry=60)) as http,
    ):
        first = http.get("/health")
        time.sleep(6)
        again = http.get("/health")
        streams = [answer.extensions["network_stream"] for answer in (first, again)]
    assert streams[0] is streams[1]
