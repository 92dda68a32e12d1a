"""Tokenise the end of a kept step again: a device function, for all slots in turn.

The last program of a launch that keeps steps calls it (`sample.ends`, `reward.kernel`); the kernel
here is for steps that are kept between launches.

The last word is found by the flags of its tokens and merged anew from its bytes, as in `bridge`:
lowest rank first, then leftmost. From the first token that differs on, kv_len = min(kv_len, begin).

Twin: `rsd_kernels.retokenise.twin`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.bridge.kernel import CHUNK, SCRATCH_WIDTH, bridge_scratch
from rsd_kernels.bridge.merge import gather_word, merge_word
from rsd_kernels.launch import Launch, all_registers, check_devices, check_shape, next_power_of_2
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.state.args import check_state, check_tables, merge_args, state_args, table_args
from rsd_kernels.state.enums import Mode, Phase
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import (
    ENDS_LINE,
    JOINS_NEXT,
    JOINS_PREVIOUS,
    MAX_WORD_BYTES,
    STARTS_LINE,
    UNCERTAIN,
    UNSETTLES,
    MergeTables,
    StepTables,
)

_MODE_RSD = tl.constexpr(int(Mode.RSD))
_PHASE_DRAFT = tl.constexpr(int(Phase.DRAFT))
_PHASE_CHOICE = tl.constexpr(int(Phase.CHOICE))
_WAIT_HOST = tl.constexpr(int(Phase.WAIT_HOST))
_JOINS_NEXT = tl.constexpr(JOINS_NEXT)
_JOINS_PREVIOUS = tl.constexpr(JOINS_PREVIOUS)
_ENDS_LINE = tl.constexpr(ENDS_LINE)
_STARTS_LINE = tl.constexpr(STARTS_LINE)
_UNCERTAIN = tl.constexpr(UNCERTAIN)
_UNSETTLES = tl.constexpr(UNSETTLES)
_MAX_WORD = tl.constexpr(MAX_WORD_BYTES)
_SCRATCH_WIDTH = tl.constexpr(SCRATCH_WIDTH)


@triton.jit
def _end_word(
    tables: tl.tuple, merges: tl.tuple, p_context: tl.tensor, first: tl.tensor, length: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Where the last word begins, its size in bytes, and 1 if the tables can tell."""
    begin, after, size, certain = length, length * 0, length * 0, length * 0 + 1
    going = begin > 0
    while going:
        token = tl.load(p_context + begin - 1)
        flags = tl.load(merges.flags + token).to(tl.int32)
        joins = (flags & _JOINS_NEXT) != 0
        if begin < length:
            needed = tl.where((flags & _ENDS_LINE) != 0, _STARTS_LINE, _JOINS_PREVIOUS)
            certain = tl.where(joins & (((flags | after) & _UNCERTAIN) != 0), 0, certain)
            joins = joins & ((after & needed) != 0)
        else:
            joins = joins & ((flags & _ENDS_LINE) != 0)
        going = joins & (certain != 0)
        if going:
            begin -= 1
            start = tl.load(tables.token_start + token)
            size += tl.load(tables.token_start + token + 1) - start
            certain = tl.where(size > _MAX_WORD, 0, certain)
            after = flags
            going = (begin > 0) & (certain != 0)
    head = tl.load(merges.flags + tl.load(p_context + first)).to(tl.int32)
    certain = tl.where((begin >= first) & ((head & _UNSETTLES) != 0), 0, certain)
    return begin, size, certain


@triton.jit
def _same(
    p_before: tl.tensor, p_after: tl.tensor, count: tl.tensor, CHUNK: tl.constexpr
) -> tl.tensor:
    """How many of `count` tokens at the beginning are the same."""
    same = count
    done = count * 0
    while done < same:
        o_id = done + tl.arange(0, CHUNK)
        m_id = o_id < count
        b_before = tl.load(p_before + o_id, mask=m_id, other=0)
        b_after = tl.load(p_after + o_id, mask=m_id, other=0)
        same = tl.minimum(same, tl.min(tl.where(b_before != b_after, o_id, count)))
        done += CHUNK
    return same


@triton.jit
def _replace_end(
    state: tl.tuple,
    slot: tl.tensor,
    length: tl.tensor,
    begin: tl.tensor,
    p_word: tl.tensor,
    word: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """Puts the `word` ids of the scratch in place of the context's from `begin` on."""
    p_context = state.tokens + slot.to(tl.int64) * state.max_len
    same = _same(p_context + begin, p_word, tl.minimum(length - begin, word), CHUNK)
    saved = length - begin - word
    taken = tl.load(state.shortened + slot)
    fewer = tl.maximum(taken + saved, 0) - tl.maximum(taken, 0)
    limit = tl.load(state.length_limit + slot) - fewer
    min_length = tl.load(state.min_length + slot) - saved
    changes = (same < word) | (same < length - begin)
    if changes & (length - saved < limit):
        first = begin + same
        p_draft = state.kv_len + slot
        p_target = p_draft + state.num_slots
        draft = tl.minimum(tl.load(p_draft), first)
        target = tl.minimum(tl.load(p_target), first)
        prompt = tl.minimum(tl.load(state.prompt_length + slot), first)
        tl.debug_barrier()  # every thread has read the context and the columns
        done = same
        while done < word:
            o_id = done + tl.arange(0, CHUNK)
            b_id = tl.load(p_word + o_id, mask=o_id < word, other=0)
            tl.store(p_context + begin + o_id, b_id, mask=o_id < word)
            done += CHUNK
        tl.store(state.length + slot, length - saved)
        tl.store(state.committed + slot, length - saved)
        tl.store(state.length_limit + slot, limit)
        tl.store(state.min_length + slot, min_length)
        tl.store(state.shortened + slot, taken + saved)
        tl.store(state.prompt_length + slot, prompt)
        tl.store(p_draft, draft)
        tl.store(p_target, target)


@triton.jit
def _settle_end(
    state: tl.tuple,
    tables: tl.tuple,
    merges: tl.tuple,
    words: tl.tensor,
    slot: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """Of a step that the slot has just kept."""
    first, length = tl.load(state.kept_from + slot), tl.load(state.length + slot)
    p_context = state.tokens + slot.to(tl.int64) * state.max_len
    begin, size, certain = _end_word(tables, merges, p_context, first, length)
    tl.debug_barrier()  # every thread has read where the step begins
    if certain == 0:
        tl.store(state.phase + slot, _WAIT_HOST)
    else:
        tl.store(state.kept_from + slot, -1)
        if length - begin > 1:
            p_word = words + slot.to(tl.int64) * _SCRATCH_WIDTH
            gather_word(tables, merges, p_context, length, p_word, size * 0, begin, size, CHUNK)
            word = merge_word(merges, p_word, size, CHUNK)
            _replace_end(state, slot, length, begin, p_word, word, CHUNK)


@triton.jit
def settle_ends(
    state: tl.tuple,
    tables: tl.tuple,
    merges: tl.tuple,  # None: every step just kept waits for the host
    words: tl.tensor,  # of `bridge_scratch`
    BLOCK_S: tl.constexpr,  # at least the slots
    CHUNK: tl.constexpr,
) -> None:
    """Settles the end of the step that each RSD slot has just kept, one slot after another.

    What is read here first, `transition` has stored before its last barrier.
    """
    b_slot = tl.arange(0, BLOCK_S)
    m_lane = b_slot < state.num_slots
    b_phase = tl.load(state.phase + b_slot, mask=m_lane, other=0)
    b_mode = tl.load(state.mode + b_slot, mask=m_lane, other=0)
    b_first = tl.load(state.kept_from + b_slot, mask=m_lane, other=-1)
    b_begun = tl.load(state.length + b_slot, mask=m_lane, other=0)
    b_begun -= tl.load(state.committed + b_slot, mask=m_lane, other=0)
    m_begins = (b_phase == _PHASE_DRAFT) | (b_phase == _PHASE_CHOICE)
    m_kept = m_lane & m_begins & (b_mode == _MODE_RSD) & (b_first >= 0) & (b_begun == 0)
    if merges is None:
        tl.debug_barrier()  # a slot may be the lane of several threads: all have read its phase
        tl.store(state.phase + b_slot, b_slot * 0 + _WAIT_HOST, mask=m_kept)
    else:
        slot = tl.min(tl.where(m_kept, b_slot, BLOCK_S))
        while slot < BLOCK_S:
            _settle_end(state, tables, merges, words, slot, CHUNK)
            slot = tl.min(tl.where(m_kept & (b_slot > slot), b_slot, BLOCK_S))


@triton.jit
def retokenise_kernel(
    state: tl.tuple,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    words: tl.tensor,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    settle_ends(state, end_tables, end_merges, words, BLOCK_S, CHUNK)


def retokenise(
    state: SlotState, tables: StepTables, merges: MergeTables | None, words: Tensor | None = None
) -> None:
    """Replaces the end of the step that each RSD slot has just kept; see the twin.

    words: of `bridge_scratch`; allocated if it is not given.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    check_state(state)
    ends = EndRules(tables, merges)
    retokenise_launch(state, ends, check_ends(state, ends, words)).run()


def retokenise_launch(state: SlotState, ends: EndRules, words: Tensor) -> Launch:
    args = {
        "state": state_args(state), **end_args(ends), "words": words,
        "BLOCK_S": next_power_of_2(max(state.num_slots, 2)), "CHUNK": CHUNK,
    }  # fmt: skip
    return Launch(retokenise_kernel, (1,), args, num_warps=4, max_registers=all_registers(4))


def check_ends(state: SlotState, ends: EndRules | None, words: Tensor | None) -> Tensor:
    """Raises ValueError unless a kernel can take these; returns the room for words."""
    if ends is not None:
        check_tables(state, ends.tables, ends.merges)
    if words is None:
        return bridge_scratch(state)
    check_shape("words", words, (state.num_slots, SCRATCH_WIDTH))
    check_devices(length=state.length, words=words)
    return words


def end_args(ends: EndRules | None) -> dict[str, Any]:
    """Arguments of `settle_ends`; without tables it is not called."""
    merges = ends.merges if ends else None
    return {
        "end_tables": table_args(ends.tables) if ends else None,
        "end_merges": merge_args(merges) if merges else None,
    }
