"""The tokens at the end of a kept step: by tables, by text, and as the whole text has them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from rsd_engine.steps.merge_tables import settles_ends
from rsd_engine.steps.step_ends import StepEnds
from rsd_kernels.retokenise.twin import replace_end, retokenise
from rsd_kernels.state.enums import Mode, Phase, Role
from rsd_kernels.state.slots import SlotState
from tests.kernels.retokenise.contexts import kept, written
from tests.steps.test_prm_tokens import BLANK, FAMILIES, Family
from tests.steps.toy_tokenizers import id_of


def tokens_of(state: SlotState, slot: int = 0) -> list[int]:
    return list(state.tokens[slot, : int(state.length[slot])].tolist())


def by_device(made: Family, context: list[int], first: int) -> list[int] | None:
    """None if it waits for the host."""
    state = kept([(context, first)])
    retokenise(state, made.tables, made.merges)
    if int(state.phase) == Phase.WAIT_HOST:
        assert tokens_of(state) == context and int(state.kept_from) == first
        return None
    assert int(state.phase) == Phase.DRAFT and int(state.kept_from) == -1
    return tokens_of(state)


def by_text(ends: StepEnds, context: list[int], first: int) -> list[int]:
    begin, tokens = ends.end_tokens(context, first)
    return context[:begin] + tokens


def ids_of(tokenizer: Any, *pieces: str) -> list[int]:
    """One token each."""
    found = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
    assert all(len(ids) == 1 for ids in found), found
    return [ids[0] for ids in found]


@pytest.mark.parametrize("name", ["qwen", "math"])
def test_tables_and_text_give_the_same_context(name: str) -> None:
    made, rng = FAMILIES[name], random.Random(name)
    assert settles_ends(made.vocabulary, [BLANK])
    ends = StepEnds(made.vocabulary, [BLANK])
    changed = on_device = whole = 0
    for _ in range(1500):
        context, first = written(made, rng)
        expected = by_text(ends, context, first)
        text = made.vocabulary.join(context)
        assert made.vocabulary.join(expected) == text
        found = by_device(made, context, first)
        assert found in (None, expected)
        on_device += found is not None
        changed += expected != context
        whole += expected == made.tokenizer.encode(text.decode(), add_special_tokens=False).ids
    assert changed > 600 and on_device > 800
    assert whole > 1200  # the others have such tokens elsewhere, or reached their limit


@pytest.mark.parametrize(
    ("before", "step", "expected"),
    [
        (["we", "\n\n"], ["add", ".", "\n\n"], ["we", "\n\n", "add", ".\n\n"]),
        (["we", "\n\n"], ["add", ".", "\n", "\n"], ["we", "\n\n", "add", ".\n\n"]),
        (["we", "\n\n"], ["\n\n"], ["we", "\n\n\n\n"]),
        (["we", "\n\n"], ["add", "\n", "\n"], ["we", "\n\n", "add", "\n\n"]),
        (["we", "\n\n"], ["add", ".\n\n"], ["we", "\n\n", "add", ".\n\n"]),
    ],
    ids=["full stop", "straddled", "empty step", "two newlines", "as it should be"],
)
def test_ends_of_steps(before: list[str], step: list[str], expected: list[str]) -> None:
    made = FAMILIES["math"]
    context = ids_of(made.tokenizer, *before)
    first = len(context)
    context += ids_of(made.tokenizer, *step)
    wanted = ids_of(made.tokenizer, *expected)
    assert by_device(made, context, first) == wanted
    assert by_text(StepEnds(made.vocabulary, [BLANK]), context, first) == wanted


def test_a_step_that_begins_with_a_newline_waits_for_the_host() -> None:
    made = FAMILIES["math"]
    context = ids_of(made.tokenizer, "we", "\n\n", "\n", "add", "\n\n")
    assert by_device(made, context, 2) is None
    wanted = ids_of(made.tokenizer, "we", "\n\n\n", "add", "\n\n")
    assert by_text(StepEnds(made.vocabulary, [BLANK]), context, 2) == wanted


def test_other_vocabularies_wait_for_the_host() -> None:
    made = FAMILIES["qwen"]
    assert not settles_ends(made.vocabulary, ["."])
    context, first = written(made, random.Random(0))
    state = kept([(context, first)] * 5)
    state.mode[1] = Mode.DRAFT
    state.kept_from[2] = -1
    state.phase[3] = Phase.DONE
    state.committed[4] -= 1
    retokenise(state, made.tables, None)
    draft = Phase.DRAFT
    assert state.phase.tolist() == [Phase.WAIT_HOST, draft, draft, Phase.DONE, draft]


def test_sentencepiece_puts_no_space_before_the_end() -> None:
    made = FAMILIES["llama"]
    ends = StepEnds(made.vocabulary, [BLANK])
    ids = made.tokenizer.encode("we add\n\n", add_special_tokens=False).ids
    assert by_text(ends, ids, 0) == ids
    # "sum" written letter by letter stays; only the delimiter's tokens could change
    letters = [id_of(made.tokenizer, letter) for letter in "▁we"]
    assert by_text(ends, [*ids, *letters, *ids[-2:]], len(ids)) == [*ids, *letters, *ids[-2:]]


def test_special_tokens_and_parts_of_characters_stay() -> None:
    made = FAMILIES["qwen"]
    ends = StepEnds(made.vocabulary, [BLANK])
    special = id_of(made.tokenizer, "<|im_start|>")
    newline, two = ids_of(made.tokenizer, "\n", "\n\n")
    assert by_text(ends, [special, newline, newline], 1) == [special, two]
    assert by_text(ends, [newline, special, newline, newline], 2) == [newline, special, two]
    half = made.vocabulary.token_bytes.index(b"\xe6")
    assert by_text(ends, [newline, newline, half], 2) == [newline, newline, half]
    assert by_text(ends, [special], 1) == [special]


def test_what_replacing_does_to_a_slot() -> None:
    state = kept([([5, 6, 7, 8, 9], 3)])
    replace_end(state, 0, 2, [7, 20])
    assert tokens_of(state) == [5, 6, 7, 20]
    assert (int(state.length), int(state.committed)) == (4, 4)
    assert state.kv_len[:, 0].tolist() == [3, 3, 5]  # from the first token that differs
    assert int(state.prompt_length) == 3
    # What was written counts: one token less in the context is one less to come.
    assert int(state.length_limit) == 55 and int(state.min_length) == 8
    assert int(state.shortened) == 1 and int(state.kept_from) == -1
    before = state.kv_len.clone()
    replace_end(state, 0, 3, [20])
    assert torch.equal(state.kv_len, before)
    replace_end(state, 0, 1, [30, 31, 32, 33])  # longer by one than before
    assert tokens_of(state) == [5, 30, 31, 32, 33]
    assert state.kv_len[[Role.DRAFT, Role.TARGET], 0].tolist() == [1, 1]
    assert int(state.length_limit) == 56 and int(state.prompt_length) == 1
    replace_end(state, 0, 4, [40, 41, 42])  # longer than what was written: the limit stays
    assert int(state.length_limit) == 56 and int(state.shortened) == -2


def test_no_room_for_a_longer_end() -> None:
    state = kept([([5, 6, 7], 1)])
    state.length_limit.fill_(4)
    replace_end(state, 0, 2, [8, 9])
    assert tokens_of(state) == [5, 6, 7] and int(state.kept_from) == -1
