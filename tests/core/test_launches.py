"""Around launches: errors, events that arrive late, returns that the host asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rsd_engine.core import host_steps
from rsd_engine.core.events import Event
from rsd_engine.loop.executors.host_graphs import DirectRecorder, HostGraphsExecutor
from rsd_kernels.state.enums import Mode, Role
from tests.core.test_random_histories import break_passes, core_of, make_request
from tests.loop.executors.around import around_launches
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import run, story, toy_request

REQUESTS = [
    make_request(("abc" * (1 + i % 2), i, float(i % 2), 8 + 3 * i, i % 4, Mode.RSD))
    for i in range(6)
]


@pytest.fixture(scope="module")
def wanted() -> dict[int, list[str]]:
    return {key: story(found) for key, found in run(core_of(3, 400, 64), REQUESTS).items()}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_a_launch_that_breaks_loses_nothing(
    name: str, role: Role, wanted: dict[int, list[str]]
) -> None:
    """Nobody loses a step: what was decided is reported, and the failed pass is run again."""
    core = core_of(3, 400, 1000, name)
    broken = break_passes(core, role, {2, 40})
    found = run(core, REQUESTS)
    assert len(broken) == 1 + (role == Role.DRAFT)
    assert {key: story(events) for key, events in found.items()} == wanted


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_what_fails_twice_ends_the_request_that_it_fails_for(
    name: str, role: Role, wanted: dict[int, list[str]]
) -> None:
    """First in a pass of several, then alone: one request ends with the error, no other does."""
    core = core_of(3, 400, 1000, name)
    broken = break_passes(core, role, {2, 3})
    found = {key: story(events) for key, events in run(core, REQUESTS).items()}
    failed = [key for key, lines in found.items() if lines[-1] == "done: ERROR"]
    assert len(broken) == 2 and len(failed) == 1
    assert {**found, failed[0]: wanted[failed[0]]} == wanted
    assert found[failed[0]][:-1] == wanted[failed[0]][: len(found[failed[0]]) - 1]


def test_a_broken_launch_and_then_an_abort(wanted: dict[int, list[str]]) -> None:
    core = core_of(3, 400, 1000)
    break_passes(core, Role.DRAFT, {7})
    for key in range(3):
        core.add(key, REQUESTS[key])
    told = core.next_events() + core.abort(1)
    assert story(told)[-1] == "done: ABORTED"
    while core.has_work:
        told += core.next_events()
    for key in (0, 2):
        assert story([e for e in told if e.key == key]) == wanted[key]


@pytest.mark.parametrize("name", ["host-graphs", "switch", "eager"])
def test_a_return_that_was_asked_for_preempts_nobody(name: str) -> None:
    """A slot may lack pages while others go on, so a requested return is no sign of being stuck."""
    core = core_of(3, 400, 1 << 16 if name == "host-graphs" else 1, name)
    core.add(0, REQUESTS[4])
    core.add(1, REQUESTS[5])
    core.next_events()
    core.state.lacks_pages[1] = 1  # as the last schedule may have left it
    if name == "host-graphs":
        assert core.in_flight
        core.ask_to_return()
        core.next_events()
    else:
        with around_launches(core, before=core.ask_to_return):
            core.next_events()
    assert not core.in_flight and core.num_preemptions == 0
    assert int(core.state.lacks_pages[1]) == 1, "the launch scheduled on: the check shows nothing"
    core.close()


def test_closing_while_a_launch_runs() -> None:
    core = core_of(2, 400, 1 << 16, "host-graphs")
    core.add(0, REQUESTS[5])
    core.next_events()
    running = core.in_flight
    core.close()
    assert running
    assert not core.in_flight
    assert isinstance(core.executor, HostGraphsExecutor)
    assert isinstance(core.executor.recorder, DirectRecorder)
    assert core.executor.recorder.recorded == []


def test_a_queued_request_is_aborted_while_a_launch_runs(wanted: dict[int, list[str]]) -> None:
    core = core_of(1, 400, 1 << 16, "host-graphs")
    for key in range(3):
        core.add(key, REQUESTS[key])
    told = core.next_events()
    assert core.in_flight and story(core.abort(1)) == ["done: ABORTED"]
    assert core.in_flight, "nothing of it was running"
    while core.has_work:
        told += core.next_events()
    for key in (0, 2):
        assert story([e for e in told if e.key == key]) == wanted[key]


class Lagging:
    """A state on a device that lags: what the host has queued happens at the next read."""

    def __init__(self, state: Any) -> None:
        self.real = state
        self.queued: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        queued, self.queued = self.queued, []
        for work in queued:
            work()
        return getattr(self.real, name)


@pytest.mark.parametrize("ticks", [1, 1000])
@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_steps_that_go_through_text(name: str, ticks: int, wanted: dict[int, list[str]]) -> None:
    found = run(core_of(3, 400, ticks, name, text=True), REQUESTS)
    assert {key: story(events) for key, events in found.items()} == wanted


@pytest.mark.parametrize("ticks", [1, 5, 1000])
def test_steps_ended_by_the_host_reach_the_log_late(
    ticks: int, wanted: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the host queues the transition of a bridged step and reads the log by itself."""
    core = core_of(3, 400, ticks, text=True)
    lagging = Lagging(core.state)
    end_slot_step = host_steps.ops.end_slot_step
    delayed = 0

    def queue_it(state: Lagging, slot: int, tokens_per_page: tuple[int, int, int]) -> None:
        nonlocal delayed
        delayed += 1
        state.queued.append(lambda: end_slot_step(state.real, slot, tokens_per_page))

    monkeypatch.setattr(host_steps.ops, "end_slot_step", queue_it)
    core.state = lagging  # type: ignore[assignment]
    assert {key: story(found) for key, found in run(core, REQUESTS).items()} == wanted
    assert delayed > 10


def test_a_request_as_long_as_the_state_allows() -> None:
    """The log has room for it, even with the most logprobs."""
    core = core_of(1, 400, 1000)
    request = toy_request("ab", max_tokens=90, max_step_tokens=90, num_logprobs=20)
    found = run(core, [request])[0]
    assert story(found)[-1] in ("done: LENGTH", "done: STOP_TOKEN", "done: STEPS")


def test_no_more_requests_run_than_allowed(wanted: dict[int, list[str]]) -> None:
    core = core_of(3, 400, 1)  # a tick a launch: what runs is seen after every one
    core.max_running = 2
    for key, request in enumerate(REQUESTS):
        core.add(key, request)
    found: dict[int, list[Event]] = {key: [] for key in wanted}
    most = 0
    while core.has_work:
        for event in core.next_events():
            found[event.key].append(event)
        most = max(most, int(core.state.active.sum()))
    assert most == 2
    assert {key: story(events) for key, events in found.items()} == wanted


def test_pages_for_a_request_are_what_the_check_asks_for() -> None:
    need = core_of(1, 400, 64).pages_for_request(REQUESTS[5])
    assert core_of(1, need, 64).check(REQUESTS[5]) is None
    assert core_of(1, need - 1, 64).check(REQUESTS[5]) == (
        f"it may need {need} KV pages and the pool has {need - 1}"
    )
