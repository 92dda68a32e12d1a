"""Candidates for a step, and samples that share a prompt: results, pages, failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_engine.steps.selection import GSI, Beam, Best, Selection, Softmax
from rsd_kernels.state.enums import Finish, Mode, RecordKind, Role
from tests.core.test_random_histories import break_passes, core_of, make_request
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import decode, run, story

SELECTIONS: dict[str, Selection] = {
    "best": Best(),
    "softmax": Softmax(3.0),
    "gsi": GSI(beta=4.0, threshold=1.0),
    "beam": Beam(2),
}


def long(name: str, seed: int, num_tokens: int, policy: int = 0) -> SlotRequest:
    """A sampled request that writes most of its tokens."""
    request = make_request((name, seed, 1.0, num_tokens, policy, Mode.RSD))
    return replace(request, min_length=len(name) + num_tokens - 8)


def with_candidates(request: SlotRequest, select: Selection, num: int = 3) -> SlotRequest:
    return replace(request, step_candidates=num, select=select)


def requests(select: Selection) -> list[SlotRequest]:
    """Two with candidates, sampled, and a plain one beside them."""
    one, other, plain = long("abcde", 1, 40), long("hgf", 2, 30, policy=1), long("abc", 3, 25)
    return [with_candidates(one, select), with_candidates(other, select, 2), plain]


def outcome(events: Sequence[Event]) -> list[tuple[str, tuple[str, ...]]]:
    """Steps with the candidates that lost, and the end."""
    lost = [
        tuple(f"{c.source.name} {c.reward:.3f} {decode(c.token_ids)}" for c in event.candidates)
        for event in events
        if isinstance(event, StepDecided)
    ]
    return list(zip(story(events), [*lost, ()], strict=True))


def outcomes(core: EngineCore, wanted: list[SlotRequest]) -> dict[int, object]:
    return {key: outcome(events) for key, events in run(core, wanted).items()}


@cache
def alone(name: str) -> dict[int, object]:
    """Each request by itself, with room for everything."""
    each = [run(core_of(6, 800, 64), [request])[0] for request in requests(SELECTIONS[name])]
    return {key: outcome(events) for key, events in enumerate(each)}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("executor", sorted(EXECUTORS))
def test_a_group_disturbs_nobody_on_any_executor(name: str, executor: str) -> None:
    core = core_of(8, 800, 32, executor)
    assert outcomes(core, requests(SELECTIONS[name])) == alone(name)


@pytest.mark.parametrize("name", SELECTIONS)
def test_candidates_fit_where_one_request_fits(name: str) -> None:
    """With no more pages than one slot may need in the end, the candidates take turns."""
    wanted = requests(SELECTIONS[name])
    roomy = core_of(6, 800, 64)
    core = core_of(6, max(roomy.pages_for_request(request) for request in wanted), 32)
    assert outcomes(core, wanted) == alone(name)
    assert core.num_preemptions > 0


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("role", list(Role))
def test_a_pass_that_breaks_once_changes_nothing(name: str, role: Role) -> None:
    core = core_of(8, 800, 32)
    broken = break_passes(core, role, {3})
    assert outcomes(core, requests(SELECTIONS[name])) == alone(name)
    assert broken == [3]


@pytest.mark.parametrize("name", SELECTIONS)
def test_abort_at_any_time_gives_all_pages_back(name: str) -> None:
    wanted = requests(SELECTIONS[name])
    for rounds in (1, 3, 9, 20):
        core = core_of(8, 800, 3)
        for key, request in enumerate(wanted):
            core.add(key, request)
        told: list[Event] = []
        for _ in range(rounds):
            told += core.next_events()
        told += core.abort(0)
        while core.has_work:
            told += core.next_events()
            assert not core.check_integrity()
        assert int(core.state.num_free) == 800
        ends = [event for event in told if isinstance(event, RequestDone)]
        assert sorted(event.key for event in ends) == [0, 1, 2]
        for key in (1, 2):
            assert outcome([event for event in told if event.key == key]) == alone(name)[key]


def test_the_candidates_are_what_lone_samples_would_write() -> None:
    """Of the first step: the one that is kept, and all that lost, by their draws."""
    accept = replace(long("abcde", 1, 40), policy=(0, 1.0, 0.0))  # every step
    [events] = run(core_of(4, 800, 64), [with_candidates(accept, Best(), 4)]).values()
    kept = events[0]
    assert isinstance(kept, StepDecided) and kept.kind == RecordKind.KEPT
    firsts = []
    for i in range(4):
        lone = run(core_of(4, 800, 64), [replace(accept, sample_index=i << 16)])[0][0]
        assert isinstance(lone, StepDecided)
        firsts.append((lone.reward, lone.token_ids))
    best = max(range(4), key=lambda i: firsts[i][0])
    assert (kept.reward, kept.token_ids) == firsts[best]
    lost = [(c.reward, c.token_ids) for c in kept.candidates]
    assert lost == [first for i, first in enumerate(firsts) if i != best]


def test_a_step_that_is_rejected_is_the_best_one_and_the_target_writes_alone() -> None:
    reject = with_candidates(replace(long("abcde", 1, 40), policy=(0, 0.0, 0.0)), Best())
    [events] = run(core_of(4, 800, 64), [reject]).values()
    steps = [event for event in events if isinstance(event, StepDecided)]
    rejected = [step for step in steps if step.kind == RecordKind.REJECTED]
    kept = [step for step in steps if step.kind == RecordKind.KEPT]
    assert len(rejected) == len(kept) > 1
    for before, after in zip(rejected, kept, strict=True):
        assert after.source == Role.TARGET and after.reward != after.reward
        assert len(after.candidates) == 2
        assert all(before.reward >= lost.reward for lost in after.candidates)


@pytest.mark.parametrize("mode", [Mode.RSD, Mode.DRAFT, Mode.TARGET])
@pytest.mark.parametrize("executor", ["eager", "switch"])
def test_samples_read_their_prompt_once(mode: Mode, executor: str) -> None:
    first = make_request(("abcdefgh" * 2, 4, 1.0, 20, 0, mode))
    samples = [replace(first, sample_index=i) for i in range(6)]
    core, lone = core_of(6, 800, 32, executor), []
    for key, sample in enumerate(samples):
        core.add(key, sample, prompt=0)
        [events] = run(core_of(1, 800, 64, executor), [sample]).values()
        lone.append(story(events))
    told: list[Event] = []
    while core.has_work:
        told += core.next_events()
        assert not core.check_integrity()
    assert [story([e for e in told if e.key == key]) for key in range(6)] == lone
    done = {event.key: event.counters for event in told if isinstance(event, RequestDone)}
    writer = Role.TARGET if mode == Mode.TARGET else Role.DRAFT
    assert all(done[key][writer].tokens_read >= 15 for key in (0,))
    written = {
        key: sum(len(e.token_ids) for e in told if isinstance(e, StepDecided) and e.key == key)
        for key in range(6)
    }
    if mode != Mode.RSD:  # where nothing is written twice: all tokens but the last are read
        for key in range(1, 6):
            assert done[key][writer].tokens_read == written[key]
        assert done[0][writer].tokens_read == written[0] + 15


def test_another_sample_reads_the_prompt_if_the_first_is_aborted() -> None:
    first = make_request(("abcdefgh" * 2, 4, 1.0, 20, 0, Mode.RSD))
    samples = [replace(first, sample_index=i) for i in range(3)]
    core = core_of(3, 800, 1)
    for key, sample in enumerate(samples):
        core.add(key, sample, prompt=0)
    told = core.next_events() + core.abort(0)
    while core.has_work:
        told += core.next_events()
        assert not core.check_integrity()
    for key in (1, 2):
        [lone] = run(core_of(1, 800, 64), [samples[key]]).values()
        assert story([e for e in told if e.key == key]) == story(lone)


def test_logits_that_are_not_finite_end_the_request_alone() -> None:
    """Every candidate has them, so there is nothing to choose."""
    core = core_of(6, 800, 32)
    draft, count = core.loop.forwards[Role.DRAFT], 0

    def broken(batch: object) -> None:
        nonlocal count
        draft(batch)  # type: ignore[arg-type]
        count += 1
        if count > 6:
            core.loop.logits[Role.DRAFT].fill_(float("nan"))

    core.loop.forwards[Role.DRAFT] = broken
    found = run(core, requests(Best()))
    ends = [events[-1] for events in found.values()]
    assert all(isinstance(end, RequestDone) and end.finish == Finish.ERROR for end in ends)
