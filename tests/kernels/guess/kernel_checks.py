"""The op that guesses, in Triton, against its twin and a naive search. Run by `test_kernel.py`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from rsd_kernels.guess import kernel, twin
from rsd_kernels.state.enums import RATE_ONE, RATE_STEPS, GuessSource, Phase, Speculation
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.kernels.harness.shadow import copied, differences

CPU = torch.device("cpu")


def a_state(contexts: Sequence[Sequence[int]], max_len: int) -> SlotState:
    """Slots with these contexts that wait for the target."""
    state = SlotState.allocate(SlotSizes(len(contexts), max_len, max_len, 4, 8, 64), CPU)
    for slot, context in enumerate(contexts):
        state.tokens[slot, : len(context)] = torch.tensor(context, dtype=torch.int32)
        state.length[slot] = len(context)
    state.committed.copy_(state.length)
    state.length_limit.fill_(max_len)
    state.max_step_tokens.fill_(max_len)
    state.phase.fill_(Phase.TARGET)
    state.active.fill_(1)
    state.guesses_at_rate.copy_(torch.arange(RATE_STEPS + 1) // 4)
    return state


def guessed(state: SlotState) -> SlotState:
    """The state after the op, the same by the kernel and by the twin."""
    ours = copied(state)
    kernel.guess(ours)
    twin.guess(state)
    assert not differences(state, ours)
    return state


def naive_ngram(context: Sequence[int], most: int) -> list[int]:
    """What followed the latest of the longest matches, of two or three tokens, with the end."""
    for size in (3, 2):
        tail = list(context[len(context) - size :])
        for end in range(len(context) - 1, size - 1, -1):
            if len(context) > size and list(context[end - size : end]) == tail:
                return list(context[end : end + max(most, 0)])
    return []


@pytest.mark.parametrize(("max_len", "longest"), [(24, 20), (700, 660)])
def test_ngrams(max_len: int, longest: int) -> None:
    rng = random.Random(longest)
    contexts = [
        [rng.randrange(rng.choice([2, 3, 9])) for _ in range(rng.choice([0, 1, 2, 3, longest]))]
        for _ in range(12)
    ]
    # A match that only an early part of a long context has.
    contexts.append([7, 8, 9, 5, 6, *range(10, 10 + longest - 8), 7, 8, 9])
    state = a_state(contexts, max_len)
    state.speculation.fill_(Speculation.NGRAM)
    asked = [rng.choice([0, 1, 3, 40]) for _ in contexts]
    state.guess_tokens.copy_(torch.tensor(asked))
    guessed(state)
    for slot, context in enumerate(contexts):
        most = min(asked[slot] or twin.NGRAM_GUESSES, max_len - len(context) - 1)
        wanted = naive_ngram(context, most)
        end = len(context) + len(wanted)
        assert state.tokens[slot, len(context) : end].tolist() == wanted
        assert int(state.guess_end[slot]) == (end if wanted else 0)
    assert int(state.guess_end[-1]) > 0


def test_who_is_asked() -> None:
    """Repetitions come first, then the draft; no slot that has guesses, or does not wait."""
    again, new = [1, 2, 3, 1, 2], [1, 2, 3, 4, 5]
    both = Speculation.DRAFT | Speculation.NGRAM
    cases = [
        (again, both), (new, both), (again, Speculation.DRAFT), (new, Speculation.NGRAM),
        (again, Speculation.NONE), (again, Speculation.REJECTED), (again, both), (again, both),
        (again, both), (again, both),
    ]  # fmt: skip
    state = a_state([context for context, _ in cases], 24)
    state.speculation.copy_(torch.tensor([int(asked) for _, asked in cases]))
    state.guess_rate.fill_(RATE_ONE // 2)
    state.guess_end[6] = 7
    state.guess_stop[7] = 7
    state.phase[8] = Phase.DRAFT
    state.active[9] = 0
    guessed(state)
    made = [i for i, end in enumerate(state.guess_end.tolist()) if end > 5]
    asks = [i for i, phase in enumerate(state.phase.tolist()) if phase == Phase.GUESS]
    assert (made, asks) == ([0, 6], [1, 2])
    assert state.guess_source[:3].tolist() == [GuessSource.NGRAM] + [GuessSource.DRAFT] * 2
    paying = RATE_STEPS // 2 // 4  # by the table, at a rate of one half
    assert state.guess_stop[1:3].tolist() == [5 + paying] * 2


def test_no_more_than_the_step_or_the_output_may_have() -> None:
    """The target adds a token of its own behind the last guess."""
    state = a_state([[1, 2, 3, 1, 2]] * 6, 24)
    state.speculation.copy_(torch.tensor([Speculation.NGRAM, Speculation.DRAFT] * 3))
    state.guess_tokens.fill_(3)
    state.length_limit.copy_(torch.tensor([8, 8, 24, 24, 6, 6]))
    state.max_step_tokens.copy_(torch.tensor([9, 9, 2, 2, 9, 9]))
    guessed(state)
    assert state.guess_end.tolist() == [7, 0, 6, 0, 0, 0]
    assert state.guess_stop.tolist() == [0, 7, 0, 6, 0, 0]
    assert state.phase.tolist() == [Phase.TARGET, Phase.GUESS] * 2 + [Phase.TARGET] * 2
