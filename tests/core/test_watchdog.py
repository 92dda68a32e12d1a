"""A launch that stands still is reported, by slot and phase; one that goes on is not."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from rsd_engine.core import engine_core
from rsd_engine.core.watchdog import Watchdog
from rsd_kernels.state.enums import Phase, Role
from tests.core.test_random_histories import core_of, make_request
from tests.loop.toy import Mode


def test_says_which_slot_stands_in_which_phase(caplog: pytest.LogCaptureFixture) -> None:
    state = core_of(4, 100, 8).state
    state.tick.fill_(17)
    state.pass_role.fill_(Role.TARGET)
    state.num_rows.fill_(2)
    state.phase[1], state.phase[3] = Phase.TARGET, Phase.SCORE
    dog = Watchdog(state, patience=0.0)
    dog.start()
    with caplog.at_level(logging.ERROR, logger="rsd_engine"):
        dog.look()
        assert not caplog.records, "one look says nothing yet"
        dog.look()
    [record] = caplog.records
    message = record.getMessage()
    assert "tick 17" in message and "target model over 2 rows" in message
    assert "slot 1 in TARGET, slot 3 in SCORE" in message and "slot 0" not in message


def test_is_silent_while_ticks_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_core, "Watchdog", partial(Watchdog, patience=0.0))
    core = core_of(2, 200, 1 << 16, "host-graphs")
    core.add(0, make_request(("abc", 1, 0.0, 25, 0, Mode.RSD)))
    with caplog.at_level(logging.ERROR, logger="rsd_engine"):
        while core.has_work:
            core.next_events()
    assert core.stats.ticks > 10 and not caplog.records


def test_waits_before_it_looks(caplog: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(core_of(1, 50, 8).state, patience=60.0)
    dog.start()
    with caplog.at_level(logging.ERROR, logger="rsd_engine"):
        for _ in range(5):
            dog.look()
    assert not caplog.records
