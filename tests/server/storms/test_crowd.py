"""Many clients at once, a third of which hang up: who stays reads what he would read alone."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from random import Random

from rsd_engine import Engine
from rsd_engine.server.async_engine import AsyncEngine
from tests.engine.harness.runs import all_pages_free
from tests.server.conftest import OPTIONS, serving
from tests.server.storms.cases import make_case
from tests.server.storms.clients import compared, storm
from tests.server.test_live import is_idle, wait_for
from tests.stress.resources import Resources

CLIENTS = 16


def test_who_stays_reads_what_he_reads_alone(engine: Engine, async_engine: AsyncEngine) -> None:
    """In one process, so that every page and every record of a request can be counted."""
    cases = [make_case(Random(i)) for i in range(16)]
    alone = [case.alone(engine) for case in cases]
    core, started = engine.parts.core, time.monotonic()
    with serving(async_engine, replace(OPTIONS, max_queue=20)) as live:
        storm(live.url, cases, clients=8, count=8, rng=Random(0))
        wait_for(lambda: is_idle(live.service))
        names = {thread.name for thread in threading.enumerate()}
        tally = storm(live.url, cases, clients=CLIENTS, count=96, rng=Random(1))
        wait_for(lambda: is_idle(live.service))
        left = {thread.name for thread in threading.enumerate()} - names
    answers = compared(tally, alone)
    print(json.dumps({"clients": tally.clients, "answers": answers, "refused": tally.refused,
                      "seconds": round(time.monotonic() - started, 1)}))  # fmt: skip
    assert answers > 48 and tally.refused
    wait_for(lambda: not core.has_work)
    assert core.slot_keys == [None] * core.state.num_slots and all_pages_free(engine)
    assert engine.check_integrity() == []
    assert Resources.now().records == 0
    assert all(name.startswith("rsd-callers") for name in left)
