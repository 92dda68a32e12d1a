"""Append sampled tokens and find the step's end, byte by byte.

(match, delimiter) = delimiter_moves[delimiter, byte]; stops likewise; a match of either ends it

The launch that draws a token appends it, unless guesses are verified: then a launch of its own goes
over the tokens of each sequence.

Twin: `rsd_kernels.sample.append_twin`. A program has one slot; every warp walks the same bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.guess.kernel import add_guess, settle_guesses
from rsd_kernels.launch import next_power_of_2
from rsd_kernels.sample.ends import end_tick_of_writer, pass_on_step
from rsd_kernels.state.enums import (
    MAX_DELIMITER_STATES,
    MAX_LOGPROBS,
    MAX_STOP_STATES,
    MAX_STOP_TOKENS,
    MOVE_SHIFT,
    NOT_FINITE,
    Finish,
    Phase,
    Role,
)

_NOT_FINITE = tl.constexpr(NOT_FINITE)
_GUESS = tl.constexpr(int(Phase.GUESS))
_TARGET = tl.constexpr(int(Role.TARGET))
_DELIMITER_STATES = tl.constexpr(MAX_DELIMITER_STATES)
_STOP_STATES = tl.constexpr(MAX_STOP_STATES)
_STOP_TOKENS = tl.constexpr(MAX_STOP_TOKENS)
_MOVE_SHIFT = tl.constexpr(MOVE_SHIFT)
_STATE_MASK = tl.constexpr((1 << MOVE_SHIFT) - 1)
_MAX_LOGPROBS = tl.constexpr(MAX_LOGPROBS)
_LOGPROB_LANES = tl.constexpr(next_power_of_2(MAX_LOGPROBS))
_STOP_TOKEN = tl.constexpr(int(Finish.STOP_TOKEN))
_STOP_STRING = tl.constexpr(int(Finish.STOP_STRING))
_LENGTH = tl.constexpr(int(Finish.LENGTH))
_ERROR = tl.constexpr(int(Finish.ERROR))


@triton.jit
def _eight_bytes(p_byte: tl.tensor, left: tl.tensor) -> tl.tensor:
    """The next bytes of a token that has `left` of them, the first one lowest; loaded at once."""
    word = left.to(tl.int64) * 0
    for i in tl.static_range(8):
        word |= tl.load(p_byte + i, mask=i < left, other=0).to(tl.int64) << (8 * i)
    return word


@triton.jit
def _walk(
    state: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    token: tl.tensor,
    stops_count: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Runs both automata over the token's bytes up to the first match: one load a byte waits."""
    delimiter = tl.load(state.delimiter_state + slot)
    stop = tl.load(state.stop_state + slot)
    start = tl.load(tables.token_start + token)
    size = tl.load(tables.token_start + token + 1) - start
    p_delimiter = state.delimiter_moves + slot.to(tl.int64) * _DELIMITER_STATES * 256
    p_stop = state.stop_moves + slot.to(tl.int64) * _STOP_STATES * 256
    matched, stopped, used = slot * 0, slot * 0, slot * 0
    word = slot.to(tl.int64) * 0
    while (used < size) & (matched == 0) & (stopped == 0):
        if used % 8 == 0:
            word = _eight_bytes(tables.token_byte + start + used, size - used)
        byte = (word & 255).to(tl.int32)
        word = word >> 8
        delimiter_move = tl.load(p_delimiter + delimiter * 256 + byte).to(tl.int32)
        stop_move = tl.load(p_stop + stop * 256 + byte).to(tl.int32)
        delimiter, matched = delimiter_move & _STATE_MASK, delimiter_move >> _MOVE_SHIFT
        stop = stop_move & _STATE_MASK
        stopped = tl.where(stops_count & ((stop_move >> _MOVE_SHIFT) != 0), 1, 0)
        used += 1
    return delimiter, stop, matched, stopped, used, size


@triton.jit
def _replacement(
    tables: tl.tuple, token: tl.tensor, used: tl.tensor, room: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Where in `prefix_token` the canonical tokens of the first `used` bytes are, and how many.

    0 if there are none, or no room for them.
    """
    entry = tl.load(tables.prefix_entry + token)
    p_end = tables.prefix_start + entry + used
    first = tl.load(p_end - 1, mask=entry >= 0, other=0)
    count = tl.load(p_end, mask=entry >= 0, other=0) - first
    return first, tl.where(count <= room, count, 0)


@triton.jit
def _write_replacement(
    state: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    length: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
) -> None:
    """Writes the tokens of a prefix. The first one carries all the logprob, the others 0."""
    o_token = slot.to(tl.int64) * state.max_len + length
    o_top = tl.arange(0, _LOGPROB_LANES)
    m_top = o_top < _MAX_LOGPROBS
    b_value = tl.load(state.top_logprob + o_token * _MAX_LOGPROBS + o_top, mask=m_top)
    b_id = tl.load(state.top_token + o_token * _MAX_LOGPROBS + o_top, mask=m_top)
    i = 0
    while i < count:
        tl.store(state.tokens + o_token + i, tl.load(tables.prefix_token + first + i))
        if i > 0:
            tl.store(state.token_logprob + o_token + i, 0.0)
            tl.store(state.token_rank + o_token + i, 1)
            tl.store(state.top_logprob + (o_token + i) * _MAX_LOGPROBS + o_top, b_value, mask=m_top)
            tl.store(state.top_token + (o_token + i) * _MAX_LOGPROBS + o_top, b_id, mask=m_top)
        i += 1


@triton.jit
def _append_good(
    state: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    token: tl.tensor,
    length: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Writes the token, or what replaces it; returns the slot's new values."""
    limit = tl.load(state.length_limit + slot)
    stops_count = length + 1 > tl.load(state.min_length + slot)
    b_stop = tl.load(state.stop_tokens + slot * _STOP_TOKENS + tl.arange(0, _STOP_TOKENS))
    delimiter, stop, matched, stopped, used, size = _walk(state, tables, slot, token, stops_count)
    count = slot * 0
    if (matched != 0) & (stopped == 0) & (used < size):
        first, count = _replacement(tables, token, used, limit - length)
        _write_replacement(state, tables, slot, length, first, count)
    if count == 0:
        tl.store(state.tokens + slot.to(tl.int64) * state.max_len + length, token)
        count += 1
    length += count
    is_stop = tl.max(tl.where(b_stop == token, 1, 0))
    finish = tl.where(length >= limit, _LENGTH, 0)
    finish = tl.where(stopped != 0, _STOP_STRING, finish)
    finish = tl.where(stops_count & (is_stop != 0), _STOP_TOKEN, finish)
    return delimiter, stop, matched, length, finish


@triton.jit
def append_token(
    state: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    token: tl.tensor,  # as drawn, or NOT_FINITE
    role: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Appends the token to the slot's context and writes whether the step ends there.

    Every program has a slot of its own and touches no other. Returns the new length, and 1 if the
    step has ended.
    """
    length = tl.load(state.length + slot)
    stop = tl.load(state.stop_state + slot)
    delimiter, matched, finish = slot * 0, slot * 0, slot * 0 + _ERROR
    if token != _NOT_FINITE:
        delimiter, stop, matched, length, finish = _append_good(state, tables, slot, token, length)
    step = length - tl.load(state.committed + slot)
    full = step >= tl.load(state.max_step_tokens + slot)
    ended = tl.where((finish != 0) | (matched != 0) | full, 1, 0)
    tl.debug_barrier()  # every warp has read the columns before one of them is overwritten
    tl.store(state.length + slot, length)
    tl.store(state.delimiter_state + slot, delimiter)
    tl.store(state.stop_state + slot, stop)
    tl.store(state.match_bytes + slot, matched)
    tl.store(state.finish + slot, finish)
    tl.store(state.ended + slot, ended)
    tl.store(state.step_source + slot, role)
    return length, ended


@triton.jit
def _append_drawn(
    state: tl.tuple,
    batch: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    place: tl.tensor,  # the first of the sequence
    count: tl.tensor,  # of its places
    role: tl.tensor,
) -> None:
    """Appends the first token, and another one as long as the last was what had been guessed."""
    guess_end = tl.load(state.guess_end + slot)
    speculation = tl.load(state.speculation + slot)
    p_tokens = state.tokens + slot.to(tl.int64) * state.max_len
    at, kept, position = slot * 0, slot * 0, slot * 0
    right, ended = slot * 0, slot * 0
    more = slot * 0 + 1
    while more != 0:
        token = tl.load(batch.place_token + place + at)
        position = tl.load(batch.place_position + place + at)
        there = (position < guess_end) & (role == _TARGET)
        guessed = tl.load(p_tokens + position, mask=there, other=-2)
        tl.debug_barrier()  # every warp has read the guess before the token takes its place
        length, ended = append_token(state, tables, slot, token, role)
        # There was a barrier after the token, or what replaces it, was stored.
        written = tl.load(p_tokens + position, mask=there, other=-1)
        right = tl.where((guessed == written) & (length == position + 1), 1, 0)
        kept += tl.where(at + 1 < count, right, 0)
        at += 1
        more = tl.where((at < count) & (right != 0) & (ended == 0), 1, 0)
    if (role == _TARGET) & (speculation != 0):
        made = count - 1
        wrong = (right == 0) & (at - 1 < made)
        goes_on = (right != 0) & (ended == 0)
        settle_guesses(state, slot, position, made, kept, wrong, goes_on)


@triton.jit(do_not_specialize=["vocabulary", "role"])
def append_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tables: tl.tuple,
    merges: tl.tuple,
    words: tl.tensor,
    tokens_per_page: tl.tuple,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    arrived: tl.tensor,
    role: tl.tensor,
    vocabulary: tl.tensor,
    ENDS: tl.constexpr,  # whether this is the last launch of a tick of the loop
    DECIDES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    """One program a sequence, where it may have several places."""
    i_seq = tl.program_id(0)
    place, slot = tl.load(batch.seq_place + i_seq), tl.load(batch.seq_slot + i_seq)
    count = tl.load(batch.seq_place + i_seq + 1) - place
    if (i_seq < tl.load(state.num_seqs)) & (count > 0):
        if tl.load(state.phase + slot) == _GUESS:
            add_guess(state, slot, tl.load(batch.place_token + place), vocabulary)
        else:
            _append_drawn(state, batch, tables, slot, place, count, role)
            if ENDS:
                pass_on_step(state, tables, merges, words, slot, DECIDES)
    if ENDS:
        end_tick_of_writer(
            state, arrived, batch.max_seqs, tokens_per_page, end_tables, end_merges, words,
            DECIDES, BLOCK_S, CLOCK,
        )  # fmt: skip
