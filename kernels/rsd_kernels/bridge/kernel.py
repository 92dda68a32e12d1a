"""Write a finished step into the PRM's context: a device function, for one slot.

Tokens inside the delimiter are dropped; the token that it begins in is replaced by its prefix, and
the last word is merged again (lowest rank first, then leftmost). Then ids are mapped to the PRM's
vocabulary; ids that stand before a step and the separator are added. A step with a token that the
PRM lacks waits for the host.

Twin: `rsd_kernels.bridge.twin`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.bridge.merge import gather_word, merge_word, word_start
from rsd_kernels.state.enums import Finish, Mode, Phase
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import BY_TEXT, MAX_WORD_BYTES

_MODE_RSD = tl.constexpr(int(Mode.RSD))
_STOP_TOKEN = tl.constexpr(int(Finish.STOP_TOKEN))
_ERROR = tl.constexpr(int(Finish.ERROR))
_PRM_FULL = tl.constexpr(int(Finish.PRM_FULL))
_WAIT_HOST = tl.constexpr(int(Phase.WAIT_HOST))
_BY_TEXT = tl.constexpr(BY_TEXT)
_MAX_WORD = tl.constexpr(MAX_WORD_BYTES)
SCRATCH_WIDTH = 2 * MAX_WORD_BYTES  # ids: pieces before the word, then the word
_SCRATCH_WIDTH = tl.constexpr(SCRATCH_WIDTH)
CHUNK = 128  # ids looked at in a turn


@triton.jit
def _strip(
    state: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    remaining: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Takes the `remaining` bytes of the delimiter off the tokens first:last of a step.

    Returns where the tokens before it end; then, of the token that the delimiter begins in: the
    range of its prefix's tokens (empty: the token stays whole), its id, and 1 if there is one.
    """
    o_context = slot.to(tl.int64) * state.max_len
    piece_first, piece_count = slot * 0, slot * 0
    token, inside = slot * 0, slot * 0
    while (remaining > 0) & (last > first):
        last -= 1
        token = tl.load(state.tokens + o_context + last)
        start = tl.load(tables.token_start + token)
        size = tl.load(tables.token_start + token + 1) - start
        if size > remaining:
            inside = slot * 0 + 1
            entry = tl.load(tables.prefix_entry + token)
            if entry >= 0:
                p_start = tables.prefix_start + entry + size - remaining
                piece_first = tl.load(p_start - 1)
                piece_count = tl.load(p_start) - piece_first
        remaining -= tl.minimum(remaining, size)
    return last, piece_first, piece_count, token, inside


@triton.jit
def _write_ids(
    p_out: tl.tensor,
    at: tl.tensor,
    ids: tl.tensor,
    count: tl.tensor,
    capacity: tl.tensor,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Writes `count` ids as far as they fit; returns where they end."""
    done = 0
    while done < count:
        o_id = done + tl.arange(0, CHUNK)
        b_id = tl.load(ids + o_id, mask=o_id < count, other=0)
        tl.store(p_out + at + o_id, b_id, mask=(o_id < count) & (at + o_id < capacity))
        done += CHUNK
    return at + count


@triton.jit
def _write_step(
    state: tl.tuple,
    tables: tl.tuple,
    slot: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    p_word: tl.tensor,
    word: tl.tensor,
    CHUNK: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Maps the tokens first:first + count, then `word` ids of the scratch, and adds the separator.

    Adds what stands before and behind a step. Returns the new length, even if that does not fit
    (writes stop at the capacity), and how many tokens were left out because they must go as text.
    """
    o_token = slot.to(tl.int64) * state.max_len + first
    start = tl.load(state.prm_committed + slot)
    p_out = state.prm_tokens + slot.to(tl.int64) * state.prm_max_len
    as_written = (slot * 0 + tables.as_written) != 0
    not_first = tl.load(state.num_steps + slot) > 0
    num_before = tl.where(not_first, tables.num_before, 0)
    at = _write_ids(p_out, start, tables.before_step, num_before, state.prm_max_len, CHUNK)
    by_text = start * 0
    done = 0
    while done < count + word:
        o_id = done + tl.arange(0, CHUNK)
        m_token, m_word = o_id < count, (o_id >= count) & (o_id < count + word)
        b_id = tl.load(state.tokens + o_token + o_id, mask=m_token, other=0)
        b_id += tl.load(p_word + o_id - count, mask=m_word, other=0)
        m_id = m_token | m_word
        b_mapped = tl.load(tables.prm_token + b_id, mask=m_id & ~as_written, other=-1)
        b_mapped = tl.where(m_id & as_written, b_id, b_mapped)
        b_one = tl.where(b_mapped >= 0, 1, 0)
        o_out = at + tl.cumsum(b_one, 0) - 1
        tl.store(p_out + o_out, b_mapped, mask=(b_one == 1) & (o_out < state.prm_max_len))
        at += tl.sum(b_one)
        by_text += tl.sum(tl.where(b_mapped == _BY_TEXT, 1, 0))
        done += CHUNK
    count = slot * 0 + tables.num_separators
    at = _write_ids(p_out, at, tables.separator, count, state.prm_max_len, CHUNK)
    return at, by_text


@triton.jit
def bridge_slot(
    state: tl.tuple,
    tables: tl.tuple,
    merges: tl.tuple,
    scratch: tl.tensor,  # of `bridge_scratch`
    slot: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """Extends the PRM's context of one slot by its step, if that has ended."""
    finish = tl.load(state.finish + slot)
    wanted = tl.load(state.ended + slot) != 0
    wanted = wanted & (tl.load(state.mode + slot) == _MODE_RSD) & (finish != _ERROR)
    if wanted:
        first, last = tl.load(state.committed + slot), tl.load(state.length + slot)
        as_written = (slot * 0 + tables.as_written) != 0
        delimiter = tl.load(state.match_bytes + slot)
        # See `drops_stop_token` in the twin.
        dropped = tl.where(as_written, slot * 0 + tables.num_separators > 0, delimiter == 0)
        dropped = dropped & (finish == _STOP_TOKEN)
        last = tl.where(dropped & (last > first), last - 1, last)
        delimiter = tl.where(as_written, 0, delimiter)
        last, piece_first, piece_count, token, inside = _strip(
            state, tables, slot, first, last, delimiter
        )
        p_word = scratch + slot.to(tl.int64) * _SCRATCH_WIDTH
        word = slot * 0
        if inside != 0:
            # The pieces: the prefix's tokens, or the token itself.
            word = tl.maximum(piece_count, 1)
            o_piece = tl.arange(0, _MAX_WORD)
            p_piece = tables.prefix_token + piece_first + o_piece
            b_piece = tl.load(p_piece, mask=o_piece < piece_count, other=0)
            b_piece = tl.where(piece_count > 0, b_piece, token)
            tl.store(p_word + o_piece, b_piece, mask=o_piece < word)
            tl.debug_barrier()
            p_step = state.tokens + slot.to(tl.int64) * state.max_len + first
            begin, size = word_start(tables, merges, p_step, last - first, p_word, word)
            if (last - first + word - begin >= 2) & (size <= _MAX_WORD):
                before = gather_word(
                    tables, merges, p_step, last - first, p_word, word, begin, size, CHUNK
                )
                last = tl.minimum(last, first + begin)
                word = before + merge_word(merges, p_word + before, size, CHUNK)
        stop, by_text = _write_step(state, tables, slot, first, last - first, p_word, word, CHUNK)
        is_full = (by_text == 0) & (stop > state.prm_max_len)
        overflow_mode = tl.load(state.overflow_mode + slot)
        tl.debug_barrier()  # every thread has read how the step ended
        fits = (by_text == 0) & (stop <= state.prm_max_len)
        tl.store(state.phase + slot, _WAIT_HOST, mask=by_text > 0)
        tl.store(state.prm_length + slot, stop, mask=fits)
        tl.store(state.prm_keep + slot, stop - tables.num_transient, mask=fits)
        tl.store(state.mode + slot, overflow_mode, mask=is_full)
        tl.store(state.finish + slot, _PRM_FULL, mask=is_full & (overflow_mode == _MODE_RSD))


@triton.jit
def wait_for_host(state: tl.tuple, slot: tl.tensor) -> None:
    """In place of `bridge_slot` where the host brings steps to the PRM, through text."""
    waits = (tl.load(state.ended + slot) != 0) & (tl.load(state.mode + slot) == _MODE_RSD)
    waits = waits & (tl.load(state.finish + slot) != _ERROR)
    tl.store(state.phase + slot, _WAIT_HOST, mask=waits)


def bridge_scratch(state: SlotState) -> Tensor:
    """[B, SCRATCH_WIDTH] int32: room for the last word of each slot's step."""
    size = (state.num_slots, SCRATCH_WIDTH)
    return torch.empty(size, dtype=torch.int32, device=state.tokens.device)
