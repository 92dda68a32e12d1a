"""First half of sampling: finiteness, logprobs, what a request changes, largest logit.

The programs of a place look at a block of the vocabulary each; the last to arrive does the rest.
Greedy slots end here. In vLLM's order: biases and forbidden ids (`forbid`), then penalties
(`penalties`). The model's own logits are kept in `raw` where they are still needed.

Twin: `rsd_kernels.sample.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.arrival import last_to_arrive
from rsd_kernels.sample.forbid import add_biases, forbid_bad_words, forbid_stops
from rsd_kernels.sample.penalties import penalise_context, penalise_output
from rsd_kernels.schedule.advance import advance
from rsd_kernels.state.enums import MAX_LOGPROBS, NOT_FINITE

_NOT_FINITE = tl.constexpr(NOT_FINITE)
_MAX_LOGPROBS = tl.constexpr(MAX_LOGPROBS)
_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def slot_of_place(state: tl.tuple, batch: tl.tuple, i_place: tl.tensor) -> tl.tensor:
    """Slot of a place; -1 if there is no such place. Neither load waits for the other."""
    there = i_place < tl.load(state.num_places)
    return tl.where(there, tl.load(batch.place_slot + i_place), -1)


@triton.jit
def largest(b_x: tl.tensor, b_id: tl.tensor) -> tuple[tl.tensor, ...]:
    """The largest value and the first id that has it."""
    top = tl.max(b_x)
    return top, tl.min(tl.where(b_x == top, b_id, _NO_ID))


@triton.jit
def _block_stats(
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    i_block: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Maximum, first id that has it, sum of exponentials and finiteness of one block."""
    b_id = i_block * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_logits + b_id, mask=b_id < vocabulary, other=0.0)
    m_finite = tl.abs(b_x) < float("inf")
    b_good = tl.where(m_finite & (b_id < vocabulary), b_x, float("-inf"))
    top, first = largest(b_good, b_id)
    # Where no logit is finite any shift will do: the place is not sampled at.
    total = tl.sum(tl.exp(b_good - tl.where(top == float("-inf"), 0.0, top)))
    o_block = i_place * scratch.num_blocks + i_block
    tl.store(scratch.block_max + o_block, top)
    tl.store(scratch.block_first + o_block, first)
    tl.store(scratch.block_bad + o_block, tl.max(tl.where(m_finite, 0, 1)))
    tl.store(scratch.block_sum + o_block, total)


@triton.jit
def _place_stats(
    scratch: tl.tuple, i_place: tl.tensor, BLOCKS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """1 if a logit is not finite; the maximum, the first id that has it, log of the sum of exp."""
    o_block = tl.arange(0, BLOCKS)
    m_block = o_block < scratch.num_blocks
    o_block = i_place * scratch.num_blocks + o_block
    bad = tl.max(tl.load(scratch.block_bad + o_block, mask=m_block, other=0))
    b_max = tl.load(scratch.block_max + o_block, mask=m_block, other=float("-inf"))
    b_first = tl.load(scratch.block_first + o_block, mask=m_block, other=_NO_ID)
    b_sum = tl.load(scratch.block_sum + o_block, mask=m_block, other=0.0)
    top, first = largest(b_max, b_first)
    lse = top + tl.log(tl.sum(b_sum * tl.exp(b_max - top)))
    return bad, top, first, lse


@triton.jit
def _top_logprobs(
    state: tl.tuple,
    p_logits: tl.tensor,
    slot: tl.tensor,
    position: tl.tensor,
    lse: tl.tensor,
    vocabulary: tl.tensor,
    wanted: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Writes the `wanted` most probable ids: each scan finds the largest below the last one."""
    last, last_id = lse * 0 + float("inf"), slot * 0 - 1
    o_top = (slot.to(tl.int64) * state.max_len + position) * _MAX_LOGPROBS
    found = 0
    while found < tl.minimum(wanted, vocabulary):
        best, best_id = lse * 0 + float("-inf"), slot * 0 + _NO_ID
        start = 0
        while start < vocabulary:
            b_id = start + tl.arange(0, BLOCK)
            b_x = tl.load(p_logits + b_id, mask=b_id < vocabulary, other=float("-inf"))
            m_left = (b_x < last) | ((b_x == last) & (b_id > last_id))
            here, here_id = largest(tl.where(m_left, b_x, float("-inf")), b_id)
            better = here > best
            best = tl.where(better, here, best)
            best_id = tl.where(better, here_id, best_id)
            start += BLOCK
        tl.store(state.top_logprob + o_top + found, best - lse)
        tl.store(state.top_token + o_top + found, best_id)
        last, last_id = best, best_id
        found += 1


@triton.jit
def _copy(
    p_logits: tl.tensor, p_raw: tl.tensor, vocabulary: tl.tensor, BLOCK: tl.constexpr
) -> None:
    start = 0
    while start < vocabulary:
        b_id = start + tl.arange(0, BLOCK)
        b_x = tl.load(p_logits + b_id, mask=b_id < vocabulary, other=0.0)
        tl.store(p_raw + b_id, b_x, mask=b_id < vocabulary)
        start += BLOCK
    tl.debug_barrier()


@triton.jit
def _scan(
    p_logits: tl.tensor, vocabulary: tl.tensor, top: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The largest logit of a place and the first id that has it."""
    best, best_id = top * 0 + float("-inf"), (top * 0).to(tl.int32)
    start = 0
    while start < vocabulary:
        b_id = start + tl.arange(0, BLOCK)
        b_x = tl.load(p_logits + b_id, mask=b_id < vocabulary, other=float("-inf"))
        here, here_id = largest(b_x, b_id)
        better = here > best
        best = tl.where(better, here, best)
        best_id = tl.where(better, here_id, best_id)
        start += BLOCK
    return best, best_id


@triton.jit
def _adjust(
    state: tl.tuple,
    batch: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    vocabulary: tl.tensor,
    CONFIDENCE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Of a place whose blocks have all been looked at; returns 1 if a token is to be drawn."""
    draws = slot * 0
    p_raw = scratch.raw + i_place.to(tl.int64) * vocabulary
    bad, top, first, lse = _place_stats(scratch, i_place, BLOCKS)
    if bad != 0:
        tl.store(batch.place_token + i_place, _NOT_FINITE)
    else:
        length = tl.load(batch.place_position + i_place)  # with guesses up to there
        wanted = tl.load(state.num_logprobs + slot)
        measured = (wanted >= 0) | (CONFIDENCE != 0)
        tl.store(scratch.place_lse + i_place, lse, mask=measured)
        if wanted >= 0:
            _top_logprobs(state, p_logits, slot, length, lse, vocabulary, wanted, BLOCK)
        penalty = tl.load(state.repetition_penalty + slot)
        early = length < tl.load(state.min_length + slot)
        adjusts = tl.load(state.adjusts + slot) != 0
        changes = early | (penalty != 1.0) | adjusts
        only = adjusts & (tl.load(state.only_biased + slot) != 0)
        copies = changes & (only | measured)
        tl.store(scratch.place_raw + i_place, tl.where(copies, 1, 0))
        if copies:
            _copy(p_logits, p_raw, vocabulary, BLOCK)
        if adjusts:
            add_biases(state, p_logits, p_raw, slot, only, vocabulary, BLOCK)
            forbid_bad_words(state, p_logits, slot, length, vocabulary)
        if early:
            forbid_stops(state, p_logits, slot, vocabulary)
        if penalty != 1.0:
            penalise_context(
                state, scratch, p_logits, i_place, slot, length, penalty, vocabulary, BLOCK
            )
        if adjusts:
            penalise_output(state, scratch, p_logits, i_place, slot, length, vocabulary, BLOCK)
        if changes:
            top, first = _scan(p_logits, vocabulary, top, BLOCK)
        temperature = tl.load(state.temperature + slot)
        scaled = tl.div_rn(top, tl.where(temperature != 0.0, temperature, 1.0))
        # Every id is forbidden, or the draw would have no finite maximum.
        overflows = (temperature != 0.0) & (tl.abs(scaled) == float("inf"))
        none = (top == float("-inf")) | overflows
        tl.store(scratch.place_max + i_place, top)
        # The greedy token; a draw replaces it.
        tl.store(batch.place_token + i_place, tl.where(none, _NOT_FINITE, first))
        draws = tl.where((temperature != 0.0) & ~none, 1, 0)
    return draws


@triton.jit(do_not_specialize=["stride_logits", "vocabulary", "role"])
def adjust_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    scratch: tl.tuple,
    logits: tl.tensor,
    stride_logits: tl.tensor,
    vocabulary: tl.tensor,
    role: tl.tensor,
    CONFIDENCE: tl.constexpr,
    BLOCK: tl.constexpr,
    SCAN_BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TICK: tl.constexpr,  # whether this is a tick of the loop: then what was read is counted
    BLOCK_S: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    """A program for each place and block."""
    i_place, i_block = tl.program_id(0), tl.program_id(1)
    slot = slot_of_place(state, batch, i_place)
    if slot >= 0:
        p_logits = logits + i_place.to(tl.int64) * stride_logits
        _block_stats(scratch, p_logits, i_place, i_block, vocabulary, BLOCK)
        if last_to_arrive(scratch.arrived + i_place, scratch.num_blocks):
            draws = _adjust(
                state, batch, scratch, p_logits, i_place, slot, vocabulary, CONFIDENCE,
                SCAN_BLOCK, BLOCKS,
            )  # fmt: skip
            tl.store(scratch.place_draws + i_place, draws)
    if TICK:  # noqa: SIM102 - decided when this is compiled
        if (i_place == 0) & (i_block == 0):
            advance(state, batch, role, role, BLOCK_S, CLOCK)
