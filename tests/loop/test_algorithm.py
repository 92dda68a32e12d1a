"""Every branch of the algorithm on scripted models, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rsd_engine.core.events import RequestDone, StepDecided
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import Finish, Mode, Role
from tests.loop.toy import (
    SEPARATOR,
    around_steps,
    as_written,
    decode,
    encode,
    run,
    story,
    toy_core,
    toy_request,
    toy_tables,
    writes,
)

DRAFT = writes({"ab": "c\n\n", "abc\n\n": "de\n\n", "abc\n\nf\n\n": "g$"})
TARGET = writes({"abc\n\n": "f\n\n"})


def score(row: tuple[int, ...]) -> float:
    return {"ab|c|": 0.9, "ab|c|de|": 0.2, "ab|c|f|g|": 0.8}[decode(row)]


def test_accept_reject_rewrite_accept() -> None:
    core = toy_core(DRAFT, TARGET, score)
    events = run(core, [toy_request("ab")])[0]
    assert story(events) == [
        "draft 0.90 kept: c\n\n",
        "draft 0.20 rejected: de\n\n",
        "target kept: f\n\n",
        "draft 0.80 kept: g$",
        "done: STOP_TOKEN",
    ]
    done = events[-1]
    assert isinstance(done, RequestDone)
    # Each PRM token is read once: prompt 3, c| 2, de| 3 (rolled back), f| 2 and g| 2.
    assert done.counters[Role.PRM].tokens_read == 3 + 2 + 3 + 2 + 2
    # The target reads the prompt, the accepted step and its own f\n.
    assert done.counters[Role.TARGET].tokens_read == len("abc\n\n") + len("f\n")
    assert done.counters[Role.PRM].passes == 3


@pytest.mark.parametrize("by_host", [False, True])
def test_ids_around_a_step_and_ids_that_leave_the_context(by_host: bool) -> None:
    """`h` stands before every step but the first; of `|ij` behind a step `ij` leave again."""

    def tokens_of(
        step: list[int], delimiter_bytes: int, finish: Finish, is_first: bool
    ) -> list[int]:
        text = decode(step).removesuffix("\n\n" if delimiter_bytes else "$")
        return [*encode(text), SEPARATOR, *encode("ij")]

    seen: list[str] = []

    def remember(row: tuple[int, ...]) -> float:
        seen.append(decode(row))
        return {"ab|c|ij": 0.9, "ab|c|hde|ij": 0.2, "ab|c|hf|hg|ij": 0.8}[seen[-1]]

    tables = around_steps(toy_tables())
    bridge = tokens_of if by_host else None
    core = toy_core(DRAFT, TARGET, remember, tables=tables, text_bridge=bridge)
    request = toy_request("ab", prm_step_ids=2, prm_transient=2)
    events = run(core, [request])[0]
    assert story(events)[:-1] == [
        "draft 0.90 kept: c\n\n",
        "draft 0.20 rejected: de\n\n",
        "target kept: f\n\n",
        "draft 0.80 kept: g$",
    ]
    assert len(seen) == 3
    done = events[-1]
    assert isinstance(done, RequestDone)
    # ab|c|ij, hde|ij, hf| and hg|ij: every id once.
    assert done.counters[Role.PRM].tokens_read == 7 + 6 + 3 + 5


def test_the_target_scores_its_own_context() -> None:
    """It reads steps as they were written and the question `ij`, on its own K/V, then writes."""
    seen: list[str] = []

    def remember(row: tuple[int, ...]) -> float:
        seen.append(decode(row))
        return {"abc\n\nij": 0.9, "abc\n\nde\n\nij": 0.2, "abc\n\nf\n\ngij": 0.8}[seen[-1]]

    core = toy_core(DRAFT, TARGET, remember, tables=as_written("ij"), prm_kv=Role.TARGET)
    request = toy_request("ab", prm_prompt="ab", prm_step_ids=0, prm_transient=2)
    events = run(core, [request])[0]
    assert story(events)[:-1] == [
        "draft 0.90 kept: c\n\n",
        "draft 0.20 rejected: de\n\n",
        "target kept: f\n\n",
        "draft 0.80 kept: g$",
    ]
    done = events[-1]
    assert isinstance(done, RequestDone)
    # Prompt and step 5 and 2; step 4 and 2, rolled back; the target's last newline, g and 2.
    assert done.counters[Role.PRM].tokens_read == 7 + 6 + (1 + 1 + 2)
    # The last token of step 1 once more, to write after it, and its own f and a newline.
    assert done.counters[Role.TARGET].tokens_read == 1 + 2


def test_a_writer_that_scores_sees_the_end_of_text() -> None:
    """Nothing follows the step, so the stop token is the last one it reads."""
    rows: list[str] = []

    def remember(row: tuple[int, ...]) -> float:
        rows.append(decode(row))
        return len(rows) / 2

    core = toy_core(
        writes({"ab": "c\n\n", "abc\n\n": "$"}),
        TARGET,
        remember,
        tables=as_written(""),
        prm_kv=Role.DRAFT,
    )
    request = toy_request("ab", prm_prompt="ab", prm_step_ids=0)
    assert story(run(core, [request])[0])[-2:] == ["draft 1.00 kept: $", "done: STOP_TOKEN"]
    assert rows == ["abc\n\n", "abc\n\n$"]


def test_rejected_last_step_goes_on() -> None:
    """End-of-text written by the draft is scored like any step and may be rejected."""
    draft = writes({"ab": "c$", "abd\n\n": "e$"})
    target = writes({"ab": "d\n\n"})
    core = toy_core(draft, target, lambda row: 0.1 if decode(row) == "ab|c|" else 0.9)
    assert story(run(core, [toy_request("ab")])[0]) == [
        "draft 0.10 rejected: c$",
        "target kept: d\n\n",
        "draft 0.90 kept: e$",
        "done: STOP_TOKEN",
    ]


def test_target_may_end_the_output() -> None:
    core = toy_core(writes({"ab": "c\n\n"}), writes({"ab": "d$"}), lambda row: 0.0)
    assert story(run(core, [toy_request("ab")])[0]) == [
        "draft 0.00 rejected: c\n\n",
        "target kept: d$",
        "done: STOP_TOKEN",
    ]


def test_end_of_text_as_first_token() -> None:
    core = toy_core(writes({"ab": "$"}), writes({"ab": "$"}), lambda row: 0.9)
    assert story(run(core, [toy_request("ab")])[0]) == ["draft 0.90 kept: $", "done: STOP_TOKEN"]


def test_steps_of_only_the_delimiter_end_at_max_steps() -> None:
    def newline(row: tuple[int, ...]) -> list[float]:
        return [1.0 if i == 13 else 0.0 for i in range(15)]

    core = toy_core(newline, newline, lambda row: 0.9)
    lines = story(run(core, [toy_request("ab", max_steps=4)])[0])
    assert lines == ["draft 0.90 kept: \n\n"] * 4 + ["done: STEPS"]


def test_a_step_ends_at_max_step_tokens_without_a_delimiter() -> None:
    seen: list[str] = []

    def remember(row: tuple[int, ...]) -> float:
        seen.append(decode(row))
        return 0.9 if len(seen) != 2 else 0.1

    text = {"ab": "cdefg$", "abcd": "efg$"}
    core = toy_core(writes(text), writes(text), remember)
    lines = story(run(core, [toy_request("ab", max_step_tokens=2)])[0])
    assert lines == [
        "draft 0.90 kept: cd",
        "draft 0.10 rejected: ef",
        "target kept: ef",
        "draft 0.90 kept: g$",
        "done: STOP_TOKEN",
    ]
    assert seen == ["ab|cd|", "ab|cd|ef|", "ab|cd|ef|g|"]  # a separator, no delimiter


def test_max_tokens_cuts_the_rewrite_as_it_cuts_the_draft() -> None:
    core = toy_core(writes({"ab": "cdefg\n\n"}), writes({"ab": "hijkl\n\n"}), lambda row: 0.0)
    assert story(run(core, [toy_request("ab", max_tokens=3)])[0]) == [
        "draft 0.00 rejected: cde",
        "target kept: hij",
        "done: LENGTH",
    ]


def test_stop_string_across_a_step_boundary_and_its_rollback() -> None:
    """The stop automaton runs over the whole output and is rolled back with rejected text."""
    draft = writes({"ab": "c\n\n", "abc\n\n": "d\n\n", "abc\n\ne\n\n": "dd\n\n"})
    target = writes({"abc\n\n": "e\n\n"})
    core = toy_core(draft, target, lambda row: 0.1 if decode(row) == "ab|c|d|" else 0.9)
    lines = story(run(core, [toy_request("ab", stop=["d\n\nd", "\ndd"])])[0])
    assert lines == [
        "draft 0.90 kept: c\n\n",
        "draft 0.10 rejected: d\n\n",
        "target kept: e\n\n",
        "draft 0.90 kept: dd",
        "done: STOP_STRING",
    ]


def test_stop_string_is_not_looked_for_in_the_prompt() -> None:
    core = toy_core(writes({"ab": "c$"}), TARGET, lambda row: 0.9)
    assert story(run(core, [toy_request("ab", stop=["bc", "ab"])])[0])[-1] == "done: STOP_TOKEN"


def test_nan_reward_never_accepts() -> None:
    for policy in ((PolicyKind.CONSTANT, 1.0, 0.0), (PolicyKind.THRESHOLD, 0.0, 0.0)):
        core = toy_core(writes({"ab": "c$"}), writes({"ab": "d$"}), lambda row: math.nan)
        events = run(core, [toy_request("ab", policy=policy)])[0]
        assert story(events) == ["draft rejected: c$", "target kept: d$", "done: STOP_TOKEN"]
        done = events[-1]
        assert isinstance(done, RequestDone) and done.nan_rewards == 1


def test_logits_that_are_not_finite_end_only_their_request() -> None:
    def draft(row: tuple[int, ...]) -> Sequence[float]:
        if decode(row[:2]) == "cd":
            return [math.inf if len(row) > 3 else 0.0] * 15
        return writes({"ab": "ef\n\n", "abef\n\n": "g$"})(row)

    core = toy_core(draft, TARGET, lambda row: 0.9)
    events = run(core, [toy_request("ab"), toy_request("cd"), toy_request("ab")])
    assert story(events[0]) == story(events[2])
    assert story(events[0])[-1] == "done: STOP_TOKEN"
    assert story(events[1])[-1] == "done: ERROR"


def test_modes_draft_and_target_cut_steps_alike() -> None:
    text = {"ab": "c\n\n", "abc\n\n": "d$"}
    for mode, name in ((Mode.DRAFT, "draft"), (Mode.TARGET, "target")):
        core = toy_core(writes(text), writes(text), score)
        assert story(run(core, [toy_request("ab", mode=mode)])[0]) == [
            f"{name} kept: c\n\n",
            f"{name} kept: d$",
            "done: STOP_TOKEN",
        ]


def test_min_tokens_holds_back_end_of_text_and_stop_strings() -> None:
    def eager_to_stop(row: tuple[int, ...]) -> list[float]:
        return [3.0 if i == 14 else 2.0 if i == len(row) - 2 else 0.0 for i in range(15)]

    core = toy_core(eager_to_stop, TARGET, score)
    request = toy_request("ab", mode=Mode.DRAFT, min_tokens=3, stop=["ab"])
    assert story(run(core, [request])[0]) == ["draft kept: abc$", "done: STOP_TOKEN"]


def test_logprobs_travel_with_the_step() -> None:
    core = toy_core(writes({"ab": "c$"}), TARGET, lambda row: 0.9)
    events = run(core, [toy_request("ab", num_logprobs=2)])[0]
    assert isinstance(events[0], StepDecided)
    assert events[0].logprobs is not None and len(events[0].logprobs) == 2
    first = events[0].logprobs[0]
    expected = 5 - math.log(math.exp(5) + 14)
    assert abs(first.logprob - expected) < 1e-5
    assert next(iter(first.top)) == 2 and len(first.top) == 2
