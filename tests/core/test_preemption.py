"""When pages run out: who is preempted, when, and that nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rsd_engine.core.events import RequestDone, StepDecided
from rsd_kernels.state.enums import Finish, Mode, Role
from tests.loop.toy import NEWLINE, decode, encode, run, story, toy_core, toy_request, writes


def ten_letters(row: tuple[int, ...]) -> list[float]:
    """Ten letters a step, then a blank line; two steps, then end-of-text."""
    text = decode(row)[2:]
    step = text.rsplit("\n\n", 1)[-1]
    wanted = "abcdefghij\n\n"[len(step)] if text.count("\n\n") < 2 else "$"
    return [5.0 if i == encode(wanted)[0] else 0.0 for i in range(15)]


def score(row: tuple[int, ...]) -> float:
    return 0.9


@pytest.mark.parametrize("ticks", [1, 3, 64])
def test_shortage_preempts_and_loses_nothing(ticks: int) -> None:
    roomy = toy_core(ten_letters, ten_letters, score)
    wanted = [story(events) for events in run(roomy, [toy_request("ab")] * 9).values()]
    assert roomy.num_preemptions == 0
    tight = toy_core(ten_letters, ten_letters, score, num_pages=37, ticks_per_launch=ticks)
    requests = [toy_request("ab", max_tokens=25, max_step_tokens=12)] * 9
    assert tight.check(requests[0]) is None
    events = run(tight, requests)
    assert [story(found) for found in events.values()] == wanted
    assert tight.num_preemptions > 0
    reads = [e[-1].counters[Role.DRAFT].tokens_read for e in events.values()]  # type: ignore[union-attr]
    # The oldest reads each of its 2 + 24 tokens once; a preempted request reads some again.
    assert reads[0] == 26 and max(reads) > 26


def test_nobody_is_preempted_while_another_goes_on() -> None:
    """A launch that ends at its tick cap preempts nobody."""
    core = toy_core(ten_letters, ten_letters, score, ticks_per_launch=1)
    for key, prompt in enumerate(("ab", "a")):  # pages of three tokens: the first is full sooner
        core.add(key, toy_request(prompt, mode=Mode.DRAFT))
    core.next_events()
    state = core.state
    state.num_free.zero_()  # as if others held them
    core.next_events()
    core.next_events()
    assert state.length.tolist()[:2] == [4, 4] and state.lacks_pages.tolist()[:2] == [1, 0]
    assert core.num_preemptions == 0
    core.next_events()
    assert core.num_preemptions == 1


def test_the_oldest_is_never_preempted() -> None:
    core = toy_core(ten_letters, ten_letters, score, ticks_per_launch=1)
    for key in range(4):
        core.add(key, toy_request("ab"))
    core.next_events()
    assert [core.preempt_youngest() for _ in range(4)] == [3, 2, 1, None]
    assert core.state.active.tolist() == [1, 0, 0, 0]
    for key in range(4):
        core.abort(key)


def test_a_request_that_can_never_fit_is_named() -> None:
    core = toy_core(ten_letters, ten_letters, score, num_pages=5)
    problem = core.check(toy_request("ab"))
    assert problem is not None and "KV pages and the pool has 5" in problem


def test_a_stop_token_that_completes_a_delimiter() -> None:
    """The PRM reads the step without its delimiter, and without eating into the text."""
    seen: list[str] = []

    def remember(row: tuple[int, ...]) -> float:
        seen.append(decode(row))
        return 0.9

    core = toy_core(writes({"ab": "cde\n"}), ten_letters, remember)
    request = replace(toy_request("ab", delimiters=["\n"]), stop_tokens=(NEWLINE,))
    events = run(core, [request])[0]
    assert isinstance(events[-1], RequestDone) and events[-1].finish == Finish.STOP_TOKEN
    assert isinstance(events[0], StepDecided) and decode(events[0].token_ids) == "cde\n"
    assert seen == ["ab|cde|"]
