"""Tokenising the end of a step again, in Triton against its twin. Run by `test_kernel.py`."""

from __future__ import annotations

import random

import pytest
import torch

from rsd_kernels.retokenise import kernel, twin
from rsd_kernels.state.enums import Mode, Phase
from rsd_kernels.state.slots import SlotState
from tests.kernels.harness.shadow import copied, differences
from tests.kernels.retokenise.contexts import ROW, kept, written
from tests.steps.test_prm_tokens import FAMILIES, Family

SLOTS = 24


def a_state(made: Family, rng: random.Random) -> SlotState:
    """Steps of every kind; some slots have none, or no room for a longer end."""
    state = kept([written(made, rng) for _ in range(SLOTS)])
    state.length_limit.copy_(state.length + torch.tensor([rng.choice([1, 9])] * SLOTS))
    state.shortened.random_(-2, 3)
    state.kv_len.copy_(state.kv_len - torch.randint(0, 3, state.kv_len.shape))
    state.mode[3] = Mode.TARGET
    state.phase[5] = Phase.SCORE
    state.phase[10:16] = Phase.CHOICE  # candidates for the next step are still to be forked
    state.kept_from[7] = -1
    state.committed[9] -= 1  # it goes on already
    return state


@pytest.mark.parametrize("name", ["qwen", "math"])
def test_kept_steps(name: str) -> None:
    made, rng = FAMILIES[name], random.Random(name)
    tables, merges = copied(made.tables), copied(made.merges)
    waiting = shorter = 0
    for _ in range(3):
        state = a_state(made, rng)
        theirs, before = copied(state), state.length.clone()
        twin.retokenise(state, made.tables, made.merges)
        kernel.retokenise(theirs, tables, merges)
        assert not differences(state, theirs)
        waiting += int((state.phase == Phase.WAIT_HOST).sum())
        shorter += int((state.length < before).sum())
    assert waiting > 5 and shorter > 15


def test_longer_ends() -> None:
    """Two tokens for one, with room and without."""
    made = FAMILIES["math"]
    assert made.merges is not None
    by_bytes = {data: token for token, data in enumerate(made.vocabulary.token_bytes)}
    # `$` `.\n\n` is how the tokenizer writes it: make `$.` and a blank line of it instead
    end = [by_bytes[b"$."], by_bytes[b"\n"], by_bytes[b"\n"]]
    state = kept([([by_bytes[b"we"], *end], 1)] * 4)
    state.shortened.copy_(torch.tensor([0, 3, -3, 0]))
    state.length_limit[3] = 4
    theirs = copied(state)
    twin.retokenise(state, made.tables, made.merges)
    kernel.retokenise(theirs, copied(made.tables), copied(made.merges))
    assert not differences(state, theirs)
    assert state.tokens[0, 1].item() == by_bytes[b"$"]


def test_long_words() -> None:
    """A word of more than one turn of the kernel's loops, and one too long for the device."""
    made = FAMILIES["qwen"]
    byte = {data: token for token, data in enumerate(made.vocabulary.token_bytes)}
    for count, waits in ((150, False), (1100, True)):
        ids = [byte[b"$"]] * count + [byte[b"\n"]] * 2
        state = kept([([1], 0)])
        state = SlotState(**{**vars(state), "tokens": torch.zeros(1, 1200, dtype=torch.int32)})
        state.tokens[0, : len(ids)] = torch.tensor(ids)
        for column in (state.length, state.committed):
            column.fill_(len(ids))
        state.kv_len.fill_(len(ids) - 1)
        state.length_limit.fill_(1199)
        theirs = copied(state)
        twin.retokenise(state, made.tables, made.merges)
        kernel.retokenise(theirs, copied(made.tables), copied(made.merges))
        assert not differences(state, theirs)
        assert (int(state.phase) == Phase.WAIT_HOST) == waits


def test_all_wait_for_the_host() -> None:
    made = FAMILIES["qwen"]
    state = a_state(made, random.Random(1))
    theirs = copied(state)
    twin.retokenise(state, made.tables, None)
    kernel.retokenise(theirs, copied(made.tables), None)
    assert not differences(state, theirs)
    assert int((state.phase == Phase.WAIT_HOST).sum()) == SLOTS - 4


def test_says_what_is_wrong() -> None:
    made = FAMILIES["qwen"]
    state = copied(kept([([1] * 5, 1)]))
    words = torch.empty(2, 7, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"words has shape \[2, 7\]"):
        kernel.retokenise(state, copied(made.tables), copied(made.merges), copied(words))
    assert state.tokens.shape[1] == ROW
