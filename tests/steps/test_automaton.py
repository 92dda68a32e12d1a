"""The byte automata against plain searching."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsd_engine.steps.automaton import build_automaton

TEXT = st.text(alphabet="ab\né", max_size=30)
PATTERNS = st.lists(st.text(alphabet="ab\né", min_size=1, max_size=5), max_size=6)


def first_match(patterns: list[str], text: str) -> tuple[int, int]:
    """(end, length) in bytes of the string complete first, the longest where several end there."""
    data = text.encode()
    for end in range(1, len(data) + 1):
        lengths = [len(p.encode()) for p in patterns if data[:end].endswith(p.encode())]
        if lengths:
            return end, max(lengths)
    return len(data), 0


@given(PATTERNS, TEXT)
def test_finds_the_first_end_and_the_longest_string(patterns: list[str], text: str) -> None:
    automaton = build_automaton(patterns, 256, "stop")
    _, end, match = automaton.find(0, text.encode())
    assert (end, match) == first_match(patterns, text)


@given(PATTERNS, TEXT, st.integers(0, 60))
def test_a_walk_in_two_parts_is_one_walk(patterns: list[str], text: str, cut: int) -> None:
    automaton = build_automaton(patterns, 256, "stop")
    data = text.encode()
    state, end, match = automaton.find(0, data[:cut])
    if not match:
        state, more, match = automaton.find(state, data[cut:])
        end += more
    assert (state, end, match) == automaton.find(0, data)


@given(PATTERNS)
def test_a_move_is_the_next_state_and_its_match(patterns: list[str]) -> None:
    automaton = build_automaton(patterns, 256, "stop")
    state, match = automaton.moves & 255, automaton.moves >> 8
    assert state.equal(automaton.next) and match.equal(automaton.match[automaton.next.long()])


def test_the_longest_strings_have_moves() -> None:
    """A delimiter of 63 bytes, and a stop string of 255, of which only the end counts."""
    delimiter = build_automaton(["a" * 63], 64, "step_delimiters").moves
    assert int(delimiter[62, ord("a")]) == (63 << 8) + 63
    stop = build_automaton(["a" * 255], 256, "stop").moves
    assert int(stop[254, ord("a")]) == (127 << 8) + 255 and int(stop[253, ord("a")]) == 254


def test_layout() -> None:
    automaton = build_automaton(["\n\n"], 64, "step_delimiters")
    assert automaton.next.shape == (3, 256)
    assert automaton.next.dtype == automaton.match.dtype == torch.int16
    assert automaton.match.tolist() == [0, 0, 2]
    assert len(automaton.match) == 3


def test_no_strings_never_match() -> None:
    automaton = build_automaton([], 64, "stop")
    assert len(automaton.match) == 1
    assert automaton.find(0, bytes(range(256))) == (0, 256, 0)


def test_too_many_states_says_which_argument_and_how_many() -> None:
    build_automaton(["a" * 63], 64, "step_delimiters")
    with pytest.raises(ValueError, match=r"step_delimiters.* 65 states.*at most 64"):
        build_automaton(["a" * 64], 64, "step_delimiters")


def test_shared_beginnings_cost_states_once() -> None:
    assert len(build_automaton(["abc", "abd"], 64, "stop").match) == 5


@pytest.mark.parametrize("strings", [[""], ["a", ""], "ab", [1], [None]])
def test_what_is_not_a_list_of_strings_is_refused(strings: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^stop"):
        build_automaton(strings, 64, "stop")
