"""Guess what the target will write: one launch over all slots, and two device functions.

n-gram: with m(e) the number of tokens, at most 3, before e that equal those at the end of the
context, the guesses are the tokens from e on, e being the last of those with the largest m >= 2.

Twin: `rsd_kernels.guess.twin`. A program has a slot of its own and touches no other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.guess.twin import DRIFT_SHIFT, MAX_MATCH, MIN_MATCH, NGRAM_GUESSES, RATE_SHIFT
from rsd_kernels.launch import Launch, next_power_of_2
from rsd_kernels.state.args import check_state, state_args
from rsd_kernels.state.enums import (
    MAX_STOP_TOKENS,
    RATE_ONE,
    RATE_STEPS,
    GuessSource,
    Phase,
    Role,
    Speculation,
)
from rsd_kernels.state.slots import SlotState

_MAX_MATCH = tl.constexpr(MAX_MATCH)
_MIN_MATCH = tl.constexpr(MIN_MATCH)
_NGRAM_GUESSES = tl.constexpr(NGRAM_GUESSES)
_RATE_SHIFT = tl.constexpr(RATE_SHIFT)
_DRIFT_SHIFT = tl.constexpr(DRIFT_SHIFT)
_RATE_ONE = tl.constexpr(RATE_ONE)
_RATE_STEPS = tl.constexpr(RATE_STEPS)
_STOP_TOKENS = tl.constexpr(MAX_STOP_TOKENS)
_TARGET = tl.constexpr(int(Phase.TARGET))
_GUESS = tl.constexpr(int(Phase.GUESS))
_BY_DRAFT = tl.constexpr(int(GuessSource.DRAFT))
_BY_NGRAM = tl.constexpr(int(GuessSource.NGRAM))
_ASKS_DRAFT = tl.constexpr(int(Speculation.DRAFT))
_ASKS_NGRAM = tl.constexpr(int(Speculation.NGRAM))
_ROLE_DRAFT = tl.constexpr(int(Role.DRAFT))
_ROLE_TARGET = tl.constexpr(int(Role.TARGET))
_BLOCK = 256  # places in the context that a turn of the search looks at


@triton.jit
def _latest_match(
    p_tokens: tl.tensor, length: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Where the latest of the longest matches ends, and its tokens; 0 tokens if there is none."""
    best = length.to(tl.int64) * 0
    start = 0
    while start < length:
        b_end = start + tl.arange(0, BLOCK)
        m_end = (b_end >= 1) & (b_end < length)
        m_same = m_end
        b_size = b_end * 0
        for back in tl.static_range(1, _MAX_MATCH + 1):
            last = tl.load(p_tokens + length - back, mask=length >= back, other=-1)
            m_same = m_same & (b_end >= back)
            b_token = tl.load(p_tokens + b_end - back, mask=m_same, other=-2)
            m_same = m_same & (b_token == last)
            b_size += tl.where(m_same, 1, 0)
        b_key = tl.where(m_end, b_size.to(tl.int64) * length + b_end, 0)
        best = tl.maximum(best, tl.max(b_key))
        start += BLOCK
    return (best % length).to(tl.int32), (best // length).to(tl.int32)


@triton.jit
def _copy_ngram(
    state: tl.tuple, slot: tl.tensor, length: tl.tensor, most: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """Writes what followed the latest match behind the context; how many tokens that is."""
    count = length * 0
    if (most > 0) & (length > _MIN_MATCH):
        p_tokens = state.tokens + slot.to(tl.int64) * state.max_len
        end, size = _latest_match(p_tokens, length, BLOCK)
        if size >= _MIN_MATCH:
            count = tl.minimum(most, length - end)
            done = 0
            while done < count:
                o_token = done + tl.arange(0, BLOCK)
                b_token = tl.load(p_tokens + end + o_token, mask=o_token < count, other=0)
                tl.store(p_tokens + length + o_token, b_token, mask=o_token < count)
                done += BLOCK
    return count


@triton.jit
def guess_kernel(state: tl.tuple, BLOCK: tl.constexpr) -> None:
    """One program a slot."""
    slot = tl.program_id(0)
    length = tl.load(state.length + slot)
    speculation = tl.load(state.speculation + slot)
    waits = (tl.load(state.phase + slot) == _TARGET) & (tl.load(state.active + slot) != 0)
    none = (tl.load(state.guess_end + slot) <= length) & (tl.load(state.guess_stop + slot) == 0)
    if waits & none & ((speculation & (_ASKS_DRAFT | _ASKS_NGRAM)) != 0):
        asked = tl.load(state.guess_tokens + slot)
        step_limit = tl.load(state.committed + slot) + tl.load(state.max_step_tokens + slot)
        # The target adds a token of its own behind the last guess.
        room = tl.minimum(tl.load(state.length_limit + slot), step_limit) - length - 1
        rate = tl.load(state.guess_rate + slot).to(tl.int64) * _RATE_STEPS // _RATE_ONE
        paying = tl.load(state.guesses_at_rate + rate)
        found = length * 0
        if (speculation & _ASKS_NGRAM) != 0:
            most = tl.minimum(tl.where(asked > 0, asked, _NGRAM_GUESSES), room)
            found = _copy_ngram(state, slot, length, most, BLOCK)
        count = tl.minimum(tl.where(asked > 0, asked, paying), room)
        drafts = (found == 0) & ((speculation & _ASKS_DRAFT) != 0) & (count > 0)
        tl.debug_barrier()  # every warp has read the columns before one of them is overwritten
        tl.store(state.guess_end + slot, length + found, mask=found > 0)
        tl.store(state.guess_stop + slot, length + count, mask=drafts)
        source = tl.where(found > 0, _BY_NGRAM, _BY_DRAFT)
        tl.store(state.guess_source + slot, source, mask=(found > 0) | drafts)
        tl.store(state.phase + slot, _GUESS, mask=drafts)


@triton.jit
def add_guess(state: tl.tuple, slot: tl.tensor, token: tl.tensor, vocabulary: tl.tensor) -> None:
    """The draft's token for a slot in phase GUESS; the last one sends the slot to the target."""
    length, end = tl.load(state.length + slot), tl.load(state.guess_end + slot)
    stop = tl.load(state.guess_stop + slot)
    end = tl.maximum(length, end)
    good = (token >= 0) & (token < vocabulary)
    b_stop = tl.load(state.stop_tokens + slot * _STOP_TOKENS + tl.arange(0, _STOP_TOKENS))
    is_stop = tl.max(tl.where(b_stop == token, 1, 0)) != 0
    tl.debug_barrier()  # every warp has read the columns before one of them is overwritten
    tl.store(state.tokens + slot.to(tl.int64) * state.max_len + end, token, mask=good)
    tl.store(state.guess_end + slot, end + 1, mask=good)
    ready = ~good | is_stop | (end + 1 >= stop)
    tl.store(state.phase + slot, _TARGET, mask=ready)


@triton.jit
def _new_rate(rate: tl.tensor, made: tl.tensor, kept: tl.tensor, wrong: tl.tensor) -> tl.tensor:
    drift = rate + ((_RATE_ONE - rate) >> _DRIFT_SHIFT)
    judged = rate
    i = 0
    while i < kept:
        judged += (_RATE_ONE - judged) >> _RATE_SHIFT
        i += 1
    judged = tl.where(wrong, judged - (judged >> _RATE_SHIFT), judged)
    return tl.where(made == 0, drift, judged)


@triton.jit
def settle_guesses(
    state: tl.tuple,
    slot: tl.tensor,
    place: tl.tensor,  # position of the last token sampled
    made: tl.tensor,  # guesses that were read
    kept: tl.tensor,  # how many of them are text now
    wrong: tl.tensor,  # whether the next one was not what the target wrote
    goes_on: tl.tensor,  # whether the guesses behind the text still fit it
) -> None:
    """Counts the guesses that the target has read, and forgets those that its text contradicts."""
    source = tl.load(state.guess_source + slot)
    o_count = source * state.num_slots + slot
    all_made = tl.load(state.guesses_made + o_count) + made
    all_kept = tl.load(state.guesses_kept + o_count) + kept
    step_kept = tl.load(state.step_guesses + slot) + kept
    rate = _new_rate(tl.load(state.guess_rate + slot), made, kept, wrong)
    p_draft = state.kv_len + _ROLE_DRAFT * state.num_slots + slot
    p_target = state.kv_len + _ROLE_TARGET * state.num_slots + slot
    draft, target = tl.minimum(tl.load(p_draft), place), tl.minimum(tl.load(p_target), place)
    tl.debug_barrier()  # every warp has read the columns before one of them is overwritten
    tl.store(state.guesses_made + o_count, all_made)
    tl.store(state.guesses_kept + o_count, all_kept)
    tl.store(state.step_guesses + slot, step_kept)
    tl.store(state.guess_rate + slot, rate, mask=source == _BY_DRAFT)
    tl.store(state.guess_end + slot, slot * 0, mask=~goes_on)
    tl.store(state.guess_stop + slot, slot * 0)
    tl.store(p_draft, draft)
    tl.store(p_target, target)


def guess(state: SlotState) -> None:
    """Before a pass is chosen: guesses for every slot that waits for the target; see the twin.

    Raises:
        ValueError: the state is not contiguous or not on one device that runs Triton.
    """
    check_state(state)
    guess_launch(state).run()


def guess_launch(state: SlotState) -> Launch:
    block = min(_BLOCK, next_power_of_2(state.tokens.shape[1]))
    args = {"state": state_args(state), "BLOCK": block}
    return Launch(guess_kernel, (state.num_slots,), args, num_warps=1)
