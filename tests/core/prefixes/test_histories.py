"""Random histories of requests that begin alike: hits, evictions, preemptions, aborts, resets.

Toy models notice a page that holds other tokens, or none; pages are overwritten as soon as nothing
is to be found in them. Every request tells the story that it tells alone, without a cache.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.loop.program import OpFailed
from rsd_kernels.state.enums import Mode, Role
from tests.core.test_random_histories import Wanted, core_of, make_request, told
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import run

STEMS = ("", "abc", "abcdefgh", "abcdefghabcdefghab", "abcdefghhgfedcba")


@pytest.fixture(autouse=True)
def ops_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that reads a wrong page fails the test, and not a request that then begins again."""

    def fail(core: EngineCore, failure: OpFailed) -> None:
        raise failure

    monkeypatch.setattr(EngineCore, "_blame", fail)


@cache
def alone(wanted: Wanted, two: bool) -> list[str]:
    core = core_of(1, 400, 64, two=two, enable_prefix_caching=False)
    [events] = run(core, [make_request(wanted, two=two)]).values()
    return told(events, two)


def wish(rng: random.Random) -> Wanted:
    tail = "".join(rng.choices("abcdefgh", k=rng.randint(1, 4)))
    mode = rng.choice([Mode.RSD, Mode.RSD, Mode.DRAFT, Mode.TARGET])
    temperature = rng.choice([0.0, 1.0])
    return rng.choice(STEMS) + tail, rng.randint(0, 3), temperature, rng.randint(1, 20), 0, mode


def spoil_free_pages(core: EngineCore) -> None:
    """Overwrites what nobody can find any more."""
    free = core.state.free_pages[: int(core.state.num_free)].long()
    unknown = [not core.prefixes.holds(int(page)) for page in free]
    core.loop.pages[free[unknown]] = 0xFF


@pytest.mark.parametrize("executor", sorted(EXECUTORS))
def test_every_request_tells_its_own_story(executor: str) -> None:
    seen = run_histories(executor, 3)
    assert seen["found"] > 0 and seen["shared"] > 0, seen


@pytest.mark.slow
@pytest.mark.parametrize("executor", sorted(EXECUTORS))
def test_so_do_many(executor: str) -> None:
    seen = run_histories(executor, 60)
    assert all(seen[name] > 20 for name in ("found", "found by the PRM", "preempted", "shared")), (
        seen
    )


def run_histories(executor: str, count: int) -> Counter[str]:
    """Returns how often what happened."""
    seen = Counter[str]()
    for history in range(count):
        rng = random.Random(f"{executor} {history}")
        two = history % 4 == 1
        core = core_of(
            rng.randint(1, 4), rng.choice([44, 60, 120]), rng.choice([1, 3, 20]), executor,
            text=history % 4 == 2, two=two,
        )  # fmt: skip
        wanted = {key: wish(rng) for key in range(12)}
        for key, found in play(core, rng, wanted, seen, two=two).items():
            lines, end = told(found, two), found[-1]
            assert isinstance(end, RequestDone) and not end.failure
            whole = alone(wanted[key], two)
            assert lines == whole if end.finish else lines[:-1] == whole[: len(lines) - 1]
            seen["found"] += sum(c.cached_tokens for c in end.counters.values())
            seen["found by the PRM"] += bool(end.counters) and bool(
                Role.PRM in end.counters and end.counters[Role.PRM].cached_tokens
            )
        seen["preempted"] += core.num_preemptions
    return seen


def play(
    core: EngineCore,
    rng: random.Random,
    wanted: dict[int, Wanted],
    seen: Counter[str],
    *,
    two: bool,
) -> dict[int, list[Event]]:
    """Runs them in a random order of events; returns what was told of each."""
    told_of: dict[int, list[Event]] = {}
    left = list(wanted)
    while left or core.has_work:
        turn = rng.random()
        if left and turn < 0.3:
            request = make_request(wanted[left[0]], two=two)
            if core.check(request) is None:
                core.add(left[0], request)
                told_of[left[0]] = []
            left.pop(0)
            continue
        if turn < 0.34:
            core.preempt_youngest()
        if turn > 0.99:
            core.prefixes.reset()
        events = core.next_events() if core.has_work else []
        if 0.34 < turn < 0.36 and told_of:
            events += core.abort(rng.choice(list(told_of)))
        for event in events:
            told_of[event.key].append(event)
        assert not core.check_integrity()
        seen["shared"] += int((core.state.page_owners > 1).sum())
        spoil_free_pages(core)
    return told_of
