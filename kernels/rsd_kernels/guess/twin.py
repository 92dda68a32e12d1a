"""Guess what the target will write, so that one of its passes can verify several tokens.

Guesses stand in `tokens` from `length` to `guess_end` and never become text by themselves: the
target reads them and samples at every place, and the text grows by the guesses that equal its own
samples, and by one sample more. So the result does not depend on them.

    guess           a slot that waits for the target and has none gets some, or goes to the draft
    add_guess       the draft's sample becomes a guess
    settle_guesses  the target's samples are in the text
"""

from __future__ import annotations

import numpy as np

from rsd_kernels.state.columns import add_at, host, number, write_at
from rsd_kernels.state.enums import (
    RATE_ONE,
    RATE_STEPS,
    GuessSource,
    Phase,
    Role,
    Speculation,
)
from rsd_kernels.state.slots import SlotState

MAX_MATCH = 3  # tokens by which n-grams are compared
MIN_MATCH = 2  # fewer say too little
NGRAM_GUESSES = 8  # where a request leaves their number open
RATE_SHIFT = 4  # of the moving average: a judged guess counts 1/16
DRIFT_SHIFT = 6  # a pass without guesses counts 1/64 towards trying them again


def guess(state: SlotState) -> None:
    """Before a pass is chosen: guesses for every slot that waits for the target and has none.

    They are copied from the slot's own context, or the slot goes to the draft.
    """
    waits = (host(state.phase) == Phase.TARGET) & (host(state.active) != 0)
    asks = host(state.speculation) & (Speculation.DRAFT | Speculation.NGRAM) != 0
    has_none = (host(state.guess_end) <= host(state.length)) & (host(state.guess_stop) == 0)
    for b in np.flatnonzero(waits & asks & has_none).tolist():
        _guess(state, b)


def _guess(state: SlotState, b: int) -> None:
    length, asked = number(state.length, b), number(state.guess_tokens, b)
    step_limit = number(state.committed, b) + number(state.max_step_tokens, b)
    # The target adds a token of its own behind the last guess.
    room = min(number(state.length_limit, b), step_limit) - length - 1
    speculation = number(state.speculation, b)
    if speculation & Speculation.NGRAM:
        found = _ngram(host(state.tokens)[b, :length], min(asked or NGRAM_GUESSES, room))
        if len(found):
            write_at(state.tokens, (b, slice(length, length + len(found))), found)
            write_at(state.guess_end, b, length + len(found))
            write_at(state.guess_source, b, GuessSource.NGRAM)
            return
    if speculation & Speculation.DRAFT:
        rate = number(state.guess_rate, b) * RATE_STEPS // RATE_ONE
        count = min(asked or number(state.guesses_at_rate, rate), room)
        if count > 0:
            write_at(state.guess_stop, b, length + count)
            write_at(state.guess_source, b, GuessSource.DRAFT)
            write_at(state.phase, b, Phase.GUESS)


def _ngram(context: np.ndarray, most: int) -> np.ndarray:
    """What followed the latest of the longest matches with the end of the context."""
    length = len(context)
    if most < 1 or length <= MIN_MATCH:
        return context[:0]
    ends = np.arange(1, length)  # behind the last token of a match
    matched = np.zeros(length - 1, dtype=np.int64)
    same = np.ones(length - 1, dtype=bool)
    for back in range(1, MAX_MATCH + 1):
        if back > length:
            break
        same = same & (ends >= back) & (context[ends - back] == context[length - back])
        matched += same
    best = int(np.max(matched * length + ends))
    end, size = best % length, best // length
    return context[end : min(end + most, length)] if size >= MIN_MATCH else context[:0]


def add_guess(state: SlotState, b: int, token: int, num_ids: int) -> None:
    """The draft's token for a slot in phase GUESS; the last one sends the slot to the target.

    No guess follows one that ends the output, nor logits that cannot be sampled from.
    """
    end = max(number(state.length, b), number(state.guess_end, b))
    good = 0 <= token < num_ids
    if good:
        write_at(state.tokens, (b, end), token)
        end += 1
        write_at(state.guess_end, b, end)
    if not good or end >= number(state.guess_stop, b) or token in host(state.stop_tokens)[b]:
        write_at(state.phase, b, Phase.TARGET)


def settle_guesses(
    state: SlotState, b: int, *, place: int, made: int, kept: int, wrong: bool, goes_on: bool
) -> None:
    """Counts the guesses that the target has read, and forgets those that its text contradicts.

    place: position of the last token sampled; K and V count up to there. made: guesses that were
    read. kept: how many of them are text now. wrong: whether the next one was not what the target
    wrote. goes_on: whether the guesses behind the text still fit it.
    """
    source = number(state.guess_source, b)
    add_at(state.guesses_made, (source, b), made)
    add_at(state.guesses_kept, (source, b), kept)
    add_at(state.step_guesses, b, kept)
    if source == GuessSource.DRAFT:
        write_at(state.guess_rate, b, _new_rate(number(state.guess_rate, b), made, kept, wrong))
    if not goes_on:
        write_at(state.guess_end, b, 0)
    write_at(state.guess_stop, b, 0)
    for role in (Role.DRAFT, Role.TARGET):
        write_at(state.kv_len, (role, b), min(number(state.kv_len, (role, b)), place))


def _new_rate(rate: int, made: int, kept: int, wrong: bool) -> int:
    """The moving average after the guesses of a pass, in integers, so that all devices agree."""
    if made == 0:
        return rate + ((RATE_ONE - rate) >> DRIFT_SHIFT)
    for _ in range(kept):
        rate += (RATE_ONE - rate) >> RATE_SHIFT
    return rate - (rate >> RATE_SHIFT) if wrong else rate
