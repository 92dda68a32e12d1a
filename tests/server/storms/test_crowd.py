"""Many clients at once, a third of which hang up: who stays reads what he would read alone."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from random import Random

import pytest

from rsd_engine import Engine
from rsd_engine.server.async_engine import AsyncEngine
from tests.engine.harness.runs import all_pages_free
from tests.server.conftest import OPTIONS, listening
from tests.server.storms.cases import make_case
from tests.server.storms.clients import compared, storm
from tests.server.storms.process import server_process
from tests.server.test_live import is_idle, wait_for
from tests.stress.resources import Resources

RSS_GROWTH = 32 * 2**20


def test_who_stays_reads_what_he_reads_alone(engine: Engine, async_engine: AsyncEngine) -> None:
    """In one process, so that every page and every record of a request can be counted."""
    cases = [make_case(Random(i)) for i in range(12)]
    alone = [case.alone(engine) for case in cases]
    core, started = engine.parts.core, time.monotonic()
    with listening(async_engine, replace(OPTIONS, max_queue=12)) as live:
        storm(live.url, cases, clients=8, count=8, rng=Random(0))
        wait_for(lambda: is_idle(live.service))
        names = {thread.name for thread in threading.enumerate()}
        tally = storm(live.url, cases, clients=16, count=80, rng=Random(1))
        wait_for(lambda: is_idle(live.service))
        left = {thread.name for thread in threading.enumerate()} - names
    answers = compared(tally, alone)
    print(json.dumps({"clients": tally.clients, "answers": answers, "refused": tally.refused,
                      "seconds": round(time.monotonic() - started, 1)}))  # fmt: skip
    assert answers > 40 and tally.refused
    wait_for(lambda: not core.has_work)
    assert core.slot_keys == [None] * core.state.num_slots and all_pages_free(engine)
    assert engine.check_integrity() == []
    assert Resources.now().records == 0
    assert all(name.startswith("rsd-callers") for name in left)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_64_clients_of_a_process_and_what_it_holds_afterwards(engine: Engine) -> None:
    """2,000 requests after 300 that warm it up: no thread, file, slot or page is left."""
    cases = [make_case(Random(1000 + i)) for i in range(100)]
    alone = [case.alone(engine) for case in cases]
    with server_process("--max-num-seqs=16", "--max-queue=60") as server:
        storm(server.url, cases, clients=64, count=300, rng=Random(2))
        server.wait_until_idle()
        before, started = server.held(), time.monotonic()
        tally = storm(server.url, cases, clients=64, count=2000, rng=Random(3))
        server.wait_until_idle()
        after = server.held()
        code = server.stop(30)
    answers = compared(tally, alone)
    requests = sum(tally.clients.values())
    print(json.dumps({"requests": requests, "clients": tally.clients, "answers": answers,
                      "refused": tally.refused, "seconds": round(time.monotonic() - started, 1),
                      "before": vars(before), "after": vars(after)}))  # fmt: skip
    assert requests >= 2000 and answers > 1000 and tally.refused
    assert (after.threads, after.files) == (before.threads, before.files)
    assert after.rss - before.rss < RSS_GROWTH
    assert code == 0
