"""The prefix cache on toy models, whose "K and V" are the tokens: a wrong page is noticed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.core.slots import SlotRequest, fill_slot
from rsd_engine.loop.program import OpFailed
from rsd_kernels import ops
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import Finish, Mode, Role
from rsd_kernels.state.pages import take_pages
from tests.core.test_random_histories import score, writer
from tests.loop.toy import NUM_IDS, encode, run, story, toy_core, toy_request

SIZES = (3, 2, 5)
PROMPT = "abcdefghijk"  # 11 tokens, and a separator for the PRM


def make_core(
    *, num_pages: int = 400, num_slots: int = 4, enable_prefix_caching: bool = True
) -> EngineCore:
    return toy_core(
        writer(b"draft"), writer(b"target"), score,
        num_pages=num_pages, num_slots=num_slots, tokens_per_page=SIZES,
        enable_prefix_caching=enable_prefix_caching,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def ops_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that reads a wrong page fails the test, and not a request that then begins again."""

    def fail(core: EngineCore, failure: OpFailed) -> None:
        raise failure

    monkeypatch.setattr(EngineCore, "_blame", fail)


def done(events: list[Event]) -> RequestDone:
    last = events[-1]
    assert isinstance(last, RequestDone) and last.failure is None, last
    return last


def run_one(core: EngineCore, request: SlotRequest) -> RequestDone:
    return done(run(core, [request])[0])


def read(found: RequestDone) -> dict[Role, tuple[int, int]]:
    """(tokens read, tokens found) of each role."""
    return {role: (c.tokens_read, c.cached_tokens) for role, c in found.counters.items()}


def test_all_but_the_last_token_of_a_prompt_is_found() -> None:
    core = make_core()
    request = toy_request(PROMPT, max_tokens=6, policy=(PolicyKind.THRESHOLD, 1.1, 0.0))
    first, second = read(run_one(core, request)), read(run_one(core, request))
    assert {role: cached for role, (_, cached) in first.items()} == dict.fromkeys(Role, 0)
    for role, prompt in ((Role.DRAFT, 11), (Role.TARGET, 11), (Role.PRM, 12)):
        assert second[role] == (first[role][0] - prompt + 1, prompt - 1)


def test_of_a_page_that_goes_on_differently_the_beginning_is_copied() -> None:
    core = make_core()
    run_one(core, toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=1))
    other = toy_request("abcdefgh" + "lll", mode=Mode.DRAFT, max_tokens=1)
    assert read(run_one(core, other)) == {Role.DRAFT: (3, 8)}  # two pages of 3, and 2 tokens
    third = toy_request("bcdefghijk", mode=Mode.DRAFT, max_tokens=1)
    assert read(run_one(core, third)) == {Role.DRAFT: (10, 0)}


def test_a_role_finds_what_it_has_read_itself() -> None:
    core = make_core()
    run_one(core, toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=1))
    assert read(run_one(core, toy_request(PROMPT, mode=Mode.TARGET, max_tokens=1))) == {
        Role.TARGET: (11, 0)
    }
    assert read(run_one(core, toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=1))) == {
        Role.DRAFT: (1, 10)
    }


def test_pages_in_use_are_shared() -> None:
    """Two requests at once hold the pages of their common beginning once."""
    core = make_core()
    request = toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=40, min_tokens=40)
    core.ticks_per_launch = 1
    core.add(0, request)
    core.next_events()
    core.add(1, replace(request, seed=1, temperature=1.0))
    core.next_events()
    held = [core.state.page_table[Role.DRAFT, slot, :3].tolist() for slot in (0, 1)]
    assert held[0] == held[1]
    assert core.state.page_owners[held[0]].tolist() == [2, 2, 2]
    assert not core.check_integrity()
    core.abort(0)
    assert core.state.page_owners[held[0]].tolist() == [1, 1, 1]
    core.abort(1)
    assert not core.check_integrity()


def test_what_was_given_up_first_is_lost_first() -> None:
    """Nothing is kept back: whoever needs pages takes them, the oldest ends of contexts first."""
    core = make_core(num_pages=12, num_slots=1)
    old, new = (
        toy_request(prompt * 4, mode=Mode.DRAFT, max_tokens=1)
        for prompt in "ab"
        for prompt in [prompt + "cd"]
    )  # 12 tokens: 4 pages each
    for request in (old, new):
        run_one(core, request)
    # 12 + 6 tokens: four of its pages were free, two held the end of the old context.
    run_one(core, toy_request("e" * 18, mode=Mode.DRAFT, max_tokens=1))
    assert read(run_one(core, old))[Role.DRAFT][1] == 6
    core = make_core(num_pages=12, num_slots=1)
    for request in (old, new, toy_request("e" * 18, mode=Mode.DRAFT, max_tokens=1)):
        run_one(core, request)
    assert read(run_one(core, new))[Role.DRAFT][1] == 11


def test_after_a_reset_nothing_is_found() -> None:
    core = make_core()
    request = toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=6, min_tokens=6)
    run_one(core, request)
    core.ticks_per_launch = 1
    core.add(1, request)
    core.next_events()  # it runs while the cache is emptied, and enters nothing any more
    core.prefixes.reset()
    while core.has_work:
        core.next_events()
    assert read(run_one(core, request))[Role.DRAFT][1] == 0
    assert read(run_one(core, request))[Role.DRAFT][1] == 10


def test_without_a_cache_nothing_is_found() -> None:
    core = make_core(enable_prefix_caching=False)
    request = toy_request(PROMPT, max_tokens=6)
    assert [read(run_one(core, request))[Role.DRAFT][1] for _ in range(2)] == [0, 0]


def test_nobody_finds_what_a_request_has_read_that_fails() -> None:
    fails = True

    def draft(row: tuple[int, ...]) -> list[float]:
        return [math.nan] * NUM_IDS if fails else list(writer(b"draft")(row))

    core = toy_core(draft, writer(b"target"), score, tokens_per_page=SIZES)
    request = toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=1)
    assert run_one(core, request).finish == Finish.ERROR
    fails = False
    assert read(run_one(core, request)) == {Role.DRAFT: (11, 0)}
    assert read(run_one(core, request)) == {Role.DRAFT: (1, 10)}


def test_a_preempted_request_finds_its_own_pages_again() -> None:
    """The pages of the youngest wait for it as long as nobody takes them."""
    core = make_core()
    requests = [toy_request("ab" * 6, mode=Mode.DRAFT, max_tokens=30, min_tokens=30, seed=s)
                for s in (0, 1)]  # fmt: skip
    wanted = [story(events) for events in run(make_core(), requests).values()]
    core.ticks_per_launch = 8
    events: dict[int, list[Event]] = {0: [], 1: []}
    for key, request in enumerate(requests):
        core.add(key, request)
    preempted = False
    while core.has_work:
        for event in core.next_events():
            events[event.key].append(event)
        if not preempted and int(core.state.length[1]) > 24:
            preempted = core.preempt_youngest() == 1
            assert int(core.state.num_pages[:, 1].sum()) == 0
        assert not core.check_integrity()
    assert preempted
    assert [story(found) for found in events.values()] == wanted
    # Its prompt of 12 is entered; the step that it was writing is read again.
    tokens, cached = read(done(events[1]))[Role.DRAFT]
    assert cached == 0 and tokens < 12 + 30 + 30


@pytest.mark.parametrize("changed", [7, 10])
@pytest.mark.parametrize("shared", [False, True])
def test_a_context_whose_end_is_tokenised_again(changed: int, shared: bool) -> None:
    """Whoever has adopted its page keeps the page; nobody else finds other tokens there."""
    core = make_core()
    core.ticks_per_launch = 1
    request = toy_request(PROMPT, mode=Mode.DRAFT, max_tokens=40, min_tokens=40)
    core.add(0, request)
    core.next_events()
    core.next_events()
    if shared:
        core.add(1, replace(request, seed=3))
        core.next_events()
    else:
        core.add(1, toy_request("l", mode=Mode.DRAFT, max_tokens=40, min_tokens=40))
        core.next_events()
    state = core.state
    page = int(state.page_table[Role.DRAFT, 0, changed // 3])
    kept = core.loop.pages[page].clone()
    for column in (state.length, state.committed):
        column[0] = 11
    state.tokens[0, changed:11] = encode("l")[0]
    state.kv_len[Role.DRAFT, 0] = changed
    events = core.next_events()  # the slot reads its new tokens
    core.add(2, toy_request("abcdefg" + "hijkab", mode=Mode.DRAFT, max_tokens=20, min_tokens=20))
    events += [event for _ in range(6) for event in core.next_events()]
    if shared and changed < 9:
        assert core.loop.pages[page].equal(kept)
    core.add(3, toy_request("abcdefg" + "llll" + "a", mode=Mode.DRAFT, max_tokens=3))
    while core.has_work:
        events += core.next_events()
        assert not core.check_integrity()
    assert [e.failure for e in events if isinstance(e, RequestDone)] == [None] * 4


def test_a_fork_that_changes_tokens_takes_back_what_its_source_has_entered() -> None:
    """The source has left, so the fork writes the page, which it owns alone, in place."""
    core = make_core()
    state, cache, draft = core.state, core.prefixes, Role.DRAFT

    def start(slot: int, prompt: str) -> None:
        request = toy_request(prompt, mode=Mode.DRAFT)
        fill_slot(state, slot, request, generation=slot + 1, arrival=slot + 1)
        cache.join(slot, request, None)

    def held() -> list[int]:
        """By slot: tokens whose K and V the draft holds, all others asked first."""
        cache.serve()
        return state.kv_len[draft].tolist()

    start(0, PROMPT[:4])
    state.tokens[0, :11] = torch.tensor(encode(PROMPT))  # it has written the rest
    state.length[0] = state.committed[0] = 11
    take_pages(state, draft, 0, 4)
    state.kv_len[draft, 0] = 11
    start(2, "lll")
    cache.look_up(2)
    assert held() == [11, 0, 0, 0]  # slot 0 has entered three full pages
    start(1, PROMPT[:4])
    ops.fork(state, core.loop.pages, 0, [1], SIZES)
    cache.fork(0, [1])
    cache.leave(0)
    # The end of its step becomes other tokens, and fewer: they are read again, into the third page.
    state.tokens[1, 7] = encode("l")[0]
    state.length[1] = state.committed[1] = state.kv_len[draft, 1] = 8
    start(3, PROMPT)
    cache.look_up(3)
    assert held()[3] == 6  # two full pages: what was entered of the third is true no more


def test_what_a_loser_gives_up_is_not_found() -> None:
    core = make_core()
    state, cache = core.state, core.prefixes
    request = toy_request(PROMPT, mode=Mode.DRAFT)
    for slot in (0, 1):
        fill_slot(state, slot, request, generation=slot + 1, arrival=slot + 1)
        cache.join(slot, request, None)
    take_pages(state, Role.DRAFT, 0, 4)
    state.kv_len[Role.DRAFT, 0] = 11
    cache.look_up(1)
    cache.serve()
    [page] = state.page_table[Role.DRAFT, 0, :1].tolist()
    assert cache.holds(page) and state.page_owners[page] == 2
    cache.discard([1])
    assert cache.holds(page) and state.page_owners[page] == 1  # another slot has the same text
    cache.discard([0])
    assert not cache.holds(page) and int(state.num_free) == 400
    assert not core.check_integrity()
