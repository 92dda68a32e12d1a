"""Many readers of all kinds on one engine with few pages: who reads on gets what he gets alone.

Six threads and an event loop make requests of all modes, good and bad, and read them, abort them or
go away. The pool is so small that requests are preempted, and now and then a pass fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import all_pages_free, generate
from tests.engine.harness.scripted import replaced
from tests.loop.executors.around import around_launches
from tests.page_checks import check_integrity
from tests.stress.cases import MAX_MODEL_LEN, Case, make_case, told
from tests.stress.readers import Tally, Visitor, visit, visit_async
from tests.stress.resources import Resources
from tests.tiny_models import TinyModels

THREADS = 6
OF_EVENT_LOOP = 0.25  # share of the requests
RSS_GROWTH = 32 * 2**20


@contextmanager
def small_engine(tiny: TinyModels) -> Iterator[Engine]:
    """Slots for eight requests, pages for one of the longest."""
    options: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "device": "cpu"}
    with Engine(**tiny.sources(), max_num_seqs=1, **options) as engine:
        memory = engine.parts.pool.num_pages * engine.parts.pool.page_bytes
    with Engine(
        **tiny.sources(), max_num_seqs=8, kv_cache_memory_bytes=memory, **options
    ) as engine:
        yield engine


@pytest.mark.parametrize(
    ("seed", "count", "distinct"),
    [
        pytest.param(1, 150, 30, id="150"),
        pytest.param(
            2, 2000, 200, id="2000", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]
        ),
    ],
)  # fmt: skip
def test_survivors_and_what_is_left(tiny: TinyModels, seed: int, count: int, distinct: int) -> None:
    cases = [make_case(Random(seed * 10_000 + i)) for i in range(distinct)]
    with small_engine(tiny) as engine:
        alone = [case.run(engine) for case in cases]
        crowd(engine, cases, Random(seed), 20)  # what grows with first use
        nobody_left(engine)
        before, started, preempted = Resources.now(), time.monotonic(), engine.num_preemptions
        with watched(engine, every=50), failing(engine, every=151):
            tally = crowd(engine, cases, Random(seed), count)
        nobody_left(engine)
        seconds = time.monotonic() - started
        read, cut = compared(tally, alone)
        requests = tally.requests
        preempted = engine.num_preemptions - preempted
        del tally
        after = Resources.now()
    print(json.dumps({"requests": requests.total(), "by reader": requests, "read": read,
                      "aborted": cut, "preemptions": preempted, "seconds": round(seconds, 1),
                      "before": vars(before), "after": vars(after)}))  # fmt: skip
    assert requests.total() >= count and len(requests) == 15
    assert read > count / 5 and cut and preempted
    assert (after.threads, after.files, after.records) == (before.threads, before.files, 0)
    assert after.rss - before.rss < RSS_GROWTH


def crowd(engine: Engine, cases: Sequence[Case], rng: Random, count: int) -> Tally:
    """Readers in threads and in an event loop, all at once."""
    tally = Tally()

    def visitor() -> Visitor:
        return Visitor(engine, cases, Random(rng.random()), tally)

    in_loop = round(count * OF_EVENT_LOOP)
    share = -(-(count - in_loop) // THREADS)
    with ThreadPoolExecutor(THREADS + 1) as pool:
        futures = [pool.submit(visit, visitor(), share) for _ in range(THREADS)]
        futures.append(pool.submit(visit_async, visitor(), in_loop))
        for future in futures:
            future.result()
    return tally


@contextmanager
def watched(engine: Engine, *, every: int) -> Iterator[None]:
    """Checks the pages ahead of every so many launches."""
    core = engine.parts.core
    launches = 0

    def look() -> None:
        nonlocal launches
        launches += 1
        if launches % every == 0:
            check_integrity(core.state, core.loop.tokens_per_page)

    with around_launches(core, before=look):
        yield


@contextmanager
def failing(engine: Engine, *, every: int) -> Iterator[None]:
    """One pass of the target in so many fails, as for a moment without memory; none ends by it."""
    forward = engine.parts.core.loop.forwards[Role.TARGET]
    passes = 0

    def fails(batch: RowBatch) -> None:
        nonlocal passes
        passes += 1
        if passes % every == 0:
            raise MemoryError
        forward(batch)

    with replaced(engine, Role.TARGET, fails):
        yield
    assert passes > every


def nobody_left(engine: Engine) -> None:
    """One more call finds the engine empty, all pages free and in order."""
    core = engine.parts.core
    Resources.now()  # collects garbage
    generate(engine, ["x"], SamplingParams(max_tokens=1, seed=0))
    assert (
        not core.has_work and all(key is None for key in core.slot_keys) and all_pages_free(engine)
    )
    assert engine.check_integrity() == []


def compared(tally: Tally, alone: Sequence[RequestOutput]) -> tuple[int, int]:
    """How many results are as they are alone, and how many were aborted and begin so."""
    read = cut = 0
    for index, result in tally.results:
        found, wanted = told(result), told(alone[index])
        if not any(output.finish_reason == "abort" for output in result.outputs):
            assert found == wanted, f"case {index}"
            read += 1
            continue
        cut += 1
        for (reason, _, steps), (whole_reason, _, whole_steps) in zip(found, wanted, strict=True):
            assert reason in ("abort", whole_reason), f"case {index}"
            assert is_beginning(steps, whole_steps), f"case {index}"
    return read, cut


def is_beginning(steps: Sequence[Any], whole: Sequence[Any]) -> bool:
    """Whether these are the first of the steps. A model alone tells tokens, and its step may stop
    half-way."""
    if not steps:
        return True
    *before, (source, ids, rejected) = steps
    whole_source, whole_ids, whole_rejected = whole[len(before)]
    begins = ids == whole_ids[: len(ids)] and (source, rejected) == (whole_source, whole_rejected)
    return begins and list(whole[: len(before)]) == before
