"""Places behind guesses: what the kernels keep of what was guessed. Run by `test_kernel.py`."""

from __future__ import annotations

import random

import pytest
import torch

from rsd_kernels.sample import twin
from rsd_kernels.sample.kernel import sample_append
from rsd_kernels.state.enums import MOVE_SHIFT, Finish, GuessSource, Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import StepTables
from tests.kernels.harness.shadow import copied, differences, differences_but_rounding
from tests.kernels.harness.tensors import DEVICE

CPU = torch.device("cpu")
LENGTH, CONTEXT, MOST = 6, 20, 4
TOKENS = (b"a", b"b", b"\n", b"\nb", b"a\nb", b"c")
NEWLINE, CUT_TO_ONE, CUT_TO_TWO, STOP = 2, 3, 4, 5
WRITTEN = {CUT_TO_ONE: [NEWLINE], CUT_TO_TWO: [0, NEWLINE]}  # a step ends at a newline


def tables() -> StepTables:
    """Two tokens have bytes past the newline: one token is left of the one, two of the other."""
    starts = [0]
    for token in TOKENS:
        starts.append(starts[-1] + len(token))

    def whole(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return StepTables(
        token_byte=torch.tensor(list(b"".join(TOKENS)), dtype=torch.uint8),
        token_start=whole(*starts),
        prefix_entry=whole(-1, -1, -1, 0, 2, -1),
        prefix_start=whole(0, 1, 1, 1, 3),
        prefix_token=whole(*WRITTEN[CUT_TO_ONE], *WRITTEN[CUT_TO_TWO]),
        prm_token=whole(*range(len(TOKENS))),
        separator=whole(0),
        before_step=whole(),
        num_transient=0,
        as_written=0,
    )


def a_state(num_slots: int) -> SlotState:
    state = SlotState.allocate(SlotSizes(num_slots, CONTEXT, CONTEXT, 4, 8, 64), CPU)
    for name, value in {
        "length": LENGTH, "committed": LENGTH - 2, "length_limit": CONTEXT - 1, "num_logprobs": -1,
        "max_step_tokens": 9, "repetition_penalty": 1.0, "top_p": 1.0, "stop_tokens": -1,
        "phase": Phase.TARGET, "active": 1, "guess_rate": 30000,
    }.items():  # fmt: skip
        getattr(state, name).fill_(value)
    state.stop_tokens[:, 0] = STOP
    state.delimiter_moves[:, :, ord("\n")] = 1 + (1 << MOVE_SHIFT)
    state.kv_len[:] = LENGTH + MOST
    return state


def guessed(state: SlotState, slot: int, guesses: list[int], source: GuessSource) -> None:
    state.tokens[slot, LENGTH : LENGTH + len(guesses)] = torch.tensor(guesses, dtype=torch.int32)
    state.guess_end[slot] = LENGTH + len(guesses)
    state.guess_source[slot] = source
    state.speculation[slot] = 7


def verified(state: SlotState, drawn: list[list[int]], role: Role) -> SlotState:
    """Draws these tokens at the places of each slot; the kernel's state, that of the twin."""
    batch = RowBatch.allocate(64, len(drawn), CPU, sum(map(len, drawn)) + 3)
    at = 0
    for slot, tokens in enumerate(drawn):
        batch.seq_slot[slot] = slot
        first = LENGTH if role == Role.TARGET else max(LENGTH, int(state.guess_end[slot]))
        for i in range(len(tokens)):
            batch.place_row_end[at] = at + 1
            batch.place_slot[at] = slot
            batch.place_position[at] = first + i
            at += 1
        batch.seq_place[slot + 1] = at
    state.num_seqs.fill_(len(drawn))
    state.num_places.fill_(at)
    logits = -torch.arange(len(TOKENS)).repeat(batch.num_places, 1).float()
    for place, token in enumerate(token for tokens in drawn for token in tokens):
        logits[place, token] = 2.0
    theirs, their_batch, their_logits = copied(state), copied(batch), logits.clone().to(DEVICE)
    sample_append(theirs, their_batch, their_logits, copied(tables()), role, verifies=True)
    twin.sample_append(state, batch, logits, tables(), role)
    assert not differences_but_rounding(state, theirs)
    assert not differences(batch, their_batch)
    return state


@pytest.mark.parametrize(
    ("guesses", "drawn", "text", "kept", "goes_on"),
    [
        ([0, 1], [0, 1, 0], [0, 1, 0], 2, False),
        ([0, 1, 1], [0, 1, 1], [0, 1, 1], 2, True),  # the last guess had no row left
        ([0, 1], [1, 1, 0], [1], 0, False),
        ([0, NEWLINE, 1], [0, NEWLINE, 1, 1], [0, NEWLINE], 2, False),  # the step ends there
        ([STOP, 0], [STOP, 0, 0], [STOP], 1, False),
        ([NEWLINE], [CUT_TO_ONE, 0], [NEWLINE], 1, False),  # what is written was guessed
        ([CUT_TO_ONE], [CUT_TO_ONE, 0], [NEWLINE], 0, False),  # what was guessed is not written
        ([0, NEWLINE], [CUT_TO_TWO, 0, 0], [0, NEWLINE], 0, False),
        ([], [1], [1], 0, False),
    ],
)
def test_what_is_kept(
    guesses: list[int], drawn: list[int], text: list[int], kept: int, goes_on: bool
) -> None:
    state = a_state(1)
    guessed(state, 0, guesses, GuessSource.REJECTED)
    verified(state, [drawn], Role.TARGET)
    assert int(state.length) == LENGTH + len(text)
    assert state.tokens[0, LENGTH : LENGTH + len(text)].tolist() == text
    assert int(state.guesses_made[GuessSource.REJECTED, 0]) == len(drawn) - 1
    assert int(state.guesses_kept[GuessSource.REJECTED, 0]) == kept == int(state.step_guesses)
    assert (int(state.guess_end) > 0) == goes_on
    last = LENGTH + len(text) - 1 - (text == [0, NEWLINE] and drawn[0] == CUT_TO_TWO)
    assert state.kv_len[[Role.DRAFT, Role.TARGET], 0].tolist() == [last, last]


def test_many_slots_at_once() -> None:
    rng = random.Random(3)
    state, drawn = a_state(12), []
    for slot in range(12):
        ends = [NEWLINE, CUT_TO_ONE, CUT_TO_TWO, STOP]
        tokens = [rng.choice([0, 0, 0, 1, 1, 1, *ends]) for _ in range(5)]
        guesses = [
            rng.choice([token, token, token, token, WRITTEN.get(token, [1])[0]])
            for token in tokens[: rng.randrange(5)]
        ]
        guessed(state, slot, guesses, rng.choice(list(GuessSource)))
        state.speculation[slot] = rng.choice([0, 7, 7])
        state.num_logprobs[slot] = rng.choice([-1, 0, 2])
        state.min_length[slot] = rng.choice([0, LENGTH + 2])
        state.max_step_tokens[slot] = rng.choice([9, 4])
        drawn.append(tokens[: len(guesses) + 1 if state.speculation[slot] else 1])
    verified(state, drawn, Role.TARGET)
    assert int(state.step_guesses.sum()) > 3
    assert {int(finish) for finish in state.finish} >= {Finish.NONE, Finish.STOP_TOKEN}


def test_the_draft_guesses_until_it_has_enough() -> None:
    """One that wants more, one that has enough, one that ends the output, one that drafts."""
    state = a_state(4)
    state.phase.copy_(torch.tensor([Phase.GUESS] * 3 + [Phase.DRAFT]))
    state.guess_stop.copy_(torch.tensor([LENGTH + 3, LENGTH + 2, LENGTH + 3, 0]))
    for slot in range(2):
        guessed(state, slot, [1], GuessSource.DRAFT)
    verified(state, [[0], [0], [STOP], [1]], Role.DRAFT)
    assert state.guess_end.tolist() == [LENGTH + 2, LENGTH + 2, LENGTH + 1, 0]
    assert state.phase.tolist() == [Phase.GUESS, Phase.TARGET, Phase.TARGET, Phase.DRAFT]
    assert state.length.tolist() == [LENGTH] * 3 + [LENGTH + 1]
