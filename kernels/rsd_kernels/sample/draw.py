"""Second half of sampling: temperature, min-p, top-k, top-p and the draw.

s = x / T - max(x) / T and e = exp(s). Kept are the ids with e >= min_p, of these the k largest, of
these the fewest largest whose mass is top_p. The token is the kept id with the largest s + Gumbel
noise, the first of equals (Gumbel-max, Maddison et al., 2014).

Without top-k and top-p each program finds the best id of its block. Else nothing is sorted: one
of 16 coarse thresholds leaves a short list of candidates, then bisection over the bits of s finds
each cut-off exactly. Ids tied at a cut-off are kept. Sums are in float64.

The last program of a place to arrive draws the token and appends it, unless guesses are verified
(`append`).

Twin: `rsd_kernels.sample.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.arrival import last_to_arrive
from rsd_kernels.gumbel.kernel import block_noise
from rsd_kernels.sample.adjust import largest, slot_of_place
from rsd_kernels.sample.append import append_token
from rsd_kernels.sample.confidence import add_confidence
from rsd_kernels.sample.ends import end_tick_of_writer, pass_on_step
from rsd_kernels.sample.scratch import MAX_CANDIDATES, NUM_CUTS
from rsd_kernels.sample.search import bisect, compact, kept, noisy_largest, scaled
from rsd_kernels.state.enums import NOT_FINITE, Phase, Purpose

_NUM_CUTS = tl.constexpr(NUM_CUTS)
_MAX_CANDIDATES = tl.constexpr(MAX_CANDIDATES)
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_GUESS = tl.constexpr(int(Phase.GUESS))
_TARGET_TOKEN = tl.constexpr(int(Purpose.TARGET_TOKEN))
_EVERYTHING = tl.constexpr(0x7F800000)  # bits of infinity: no s is below it
_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _cut_bits(cut: tl.tensor) -> tl.tensor:
    """Bits of the coarse threshold s >= -(cut + 1); the last one keeps everything."""
    b_bits = (cut + 1).to(tl.float32).to(tl.int32, bitcast=True)
    return tl.where(cut == _NUM_CUTS - 1, _EVERYTHING, b_bits)


@triton.jit
def _cutters(state: tl.tuple, slot: tl.tensor, vocabulary: tl.tensor) -> tuple[tl.tensor, ...]:
    """Top-k, 0 if it keeps all; top-p; whether either of them cuts."""
    top_p, top_k = tl.load(state.top_p + slot), tl.load(state.top_k + slot)
    top_k = tl.where(top_k < vocabulary, top_k, 0)
    return top_k, top_p, (top_k > 0) | (top_p < 1.0)


@triton.jit
def purpose_of_draw(state: tl.tuple, slot: tl.tensor, purpose: tl.tensor) -> tl.tensor:
    """The writer's own, or the target's where the draft guesses what that will write."""
    guesses = tl.load(state.phase + slot) == _GUESS
    return tl.where(guesses, _TARGET_TOKEN, purpose)


@triton.jit
def _draw_block(
    state: tl.tuple,
    batch: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    i_block: tl.tensor,
    slot: tl.tensor,
    purpose: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The drawn id of one block; or how many ids each coarse threshold keeps, and their mass."""
    temperature = tl.load(state.temperature + slot)
    min_p = tl.load(state.min_p + slot)
    top = tl.div_rn(tl.load(scratch.place_max + i_place), temperature)
    b_id = i_block * BLOCK + tl.arange(0, BLOCK)
    m_id = b_id < vocabulary
    b_key, b_e = scaled(p_logits, b_id, m_id, temperature, top)
    m_id = m_id & (b_e >= min_p)
    o_block = i_place * scratch.num_blocks + i_block
    _, _, cuts = _cutters(state, slot, vocabulary)
    if cuts:
        p_cut = o_block * _NUM_CUTS
        for cut in tl.static_range(_NUM_CUTS):
            m_kept = m_id & (b_key <= _cut_bits(tl.full((), cut, tl.int32)))
            tl.store(scratch.cut_count + p_cut + cut, tl.sum(tl.where(m_kept, 1, 0)))
            mass = tl.sum(tl.where(m_kept, b_e, 0.0).to(tl.float64))
            tl.store(scratch.cut_mass + p_cut + cut, mass)
    else:
        position = tl.load(batch.place_position + i_place)
        b_sum = block_noise(state, slot, position, purpose, i_block * BLOCK, BLOCK)
        b_sum -= b_key.to(tl.float32, bitcast=True)
        best, token = largest(tl.where(m_id, b_sum, float("-inf")), b_id)
        tl.store(scratch.block_best + o_block, best)
        tl.store(scratch.block_token + o_block, token)


@triton.jit
def _coarse_cut(
    scratch: tl.tuple, i_place: tl.tensor, top_k: tl.tensor, top_p: tl.tensor, BLOCKS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The first coarse threshold that keeps enough, how many ids it keeps, the mass of all ids."""
    o_cut = tl.arange(0, _NUM_CUTS)
    o_block = tl.arange(0, BLOCKS)
    m_block = (o_block < scratch.num_blocks)[:, None]
    o_part = (i_place * scratch.num_blocks + o_block)[:, None] * _NUM_CUTS + o_cut[None, :]
    b_count = tl.sum(tl.load(scratch.cut_count + o_part, mask=m_block, other=0), 0)
    b_mass = tl.sum(tl.load(scratch.cut_mass + o_part, mask=m_block, other=0.0), 0)
    everything = tl.sum(tl.where(o_cut == _NUM_CUTS - 1, b_mass, 0.0))
    # Top-p is a share of the mass that top-k leaves, so top-k decides where both are asked for.
    m_enough = tl.where(top_k > 0, b_count >= top_k, b_mass >= top_p.to(tl.float64) * everything)
    cut = tl.min(tl.where(m_enough, o_cut, _NUM_CUTS - 1))
    return cut, tl.sum(tl.where(o_cut == cut, b_count, 0)), everything


@triton.jit
def _draw_cut(
    state: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    position: tl.tensor,
    purpose: tl.tensor,
    vocabulary: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    temperature, min_p = tl.load(state.temperature + slot), tl.load(state.min_p + slot)
    top = tl.div_rn(tl.load(scratch.place_max + i_place), temperature)
    p_candidate = scratch.candidate + i_place.to(tl.int64) * _MAX_CANDIDATES
    cut, left, mass = _coarse_cut(scratch, i_place, top_k, top_p, BLOCKS)
    limit = _cut_bits(cut)
    listed = left <= _MAX_CANDIDATES
    number = tl.where(listed, left, vocabulary)
    if listed:
        compact(p_logits, p_candidate, vocabulary, temperature, top, min_p, limit, BLOCK)
    low = tl.where(cut == 0, -1, _cut_bits(cut - 1))
    if top_k > 0:
        limit = bisect(
            p_logits, p_candidate, number, listed, temperature, top, min_p, low, limit, top_k,
            mass * 0.0, BLOCK,
        )  # fmt: skip
        low = limit * 0 - 1
    if top_p < 1.0:
        if top_k > 0:
            _, mass = kept(
                p_logits, p_candidate, number, listed, temperature, top, min_p, limit, BLOCK
            )
        limit = bisect(
            p_logits, p_candidate, number, listed, temperature, top, min_p, low, limit, 0,
            top_p.to(tl.float64) * mass, BLOCK,
        )  # fmt: skip
    return noisy_largest(
        state, slot, position, purpose, p_logits, p_candidate, number, listed, temperature, top,
        min_p, limit, BLOCK,
    )  # fmt: skip


@triton.jit
def _draw(
    state: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    position: tl.tensor,
    purpose: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    top_k, top_p, cuts = _cutters(state, slot, vocabulary)
    if cuts:
        token = _draw_cut(
            state, scratch, p_logits, i_place, slot, position, purpose, vocabulary, top_k, top_p,
            BLOCK, BLOCKS,
        )  # fmt: skip
    else:
        o_block = tl.arange(0, BLOCKS)
        m_block = o_block < scratch.num_blocks
        o_block += i_place * scratch.num_blocks
        b_best = tl.load(scratch.block_best + o_block, mask=m_block, other=float("-inf"))
        b_token = tl.load(scratch.block_token + o_block, mask=m_block, other=_NO_ID)
        _, token = largest(b_best, b_token)
    return token


@triton.jit
def _token_logprob(
    state: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    position: tl.tensor,
    token: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Writes the model's own logprob and rank of the token, from its logits as they were."""
    raw = tl.load(scratch.place_raw + i_place) != 0
    p_raw = scratch.raw + i_place.to(tl.int64) * vocabulary
    logit = tl.load(p_raw + token, mask=raw, other=0.0)
    logit = tl.where(raw, logit, tl.load(p_logits + token))
    rank = token * 0 + 1
    start = 0
    while start < vocabulary:
        b_id = start + tl.arange(0, BLOCK)
        m_id = b_id < vocabulary
        b_raw = tl.load(p_raw + b_id, mask=m_id & raw, other=0.0)
        b_x = tl.load(p_logits + b_id, mask=m_id & (raw == 0), other=0.0)
        b_x = tl.where(raw, b_raw, b_x)
        m_before = (b_x > logit) | ((b_x == logit) & (b_id < token))
        rank += tl.sum(tl.where(m_id & m_before, 1, 0))
        start += BLOCK
    lse = tl.load(scratch.place_lse + i_place)
    o_token = slot.to(tl.int64) * state.max_len + position
    tl.store(state.token_logprob + o_token, logit - lse)
    tl.store(state.token_rank + o_token, rank)


@triton.jit(do_not_specialize=["stride_logits", "vocabulary", "role", "purpose"])
def draw_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    scratch: tl.tuple,
    logits: tl.tensor,
    stride_logits: tl.tensor,
    vocabulary: tl.tensor,
    tables: tl.tuple,
    merges: tl.tuple,
    words: tl.tensor,
    tokens_per_page: tl.tuple,
    end_tables: tl.tuple,
    end_merges: tl.tuple,
    role: tl.tensor,
    purpose: tl.tensor,
    CONFIDENCE: tl.constexpr,
    APPEND: tl.constexpr,  # whether every sequence has one place
    BLOCK: tl.constexpr,
    SCAN_BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    ENDS: tl.constexpr,  # whether this is the last launch of a tick of the loop
    DECIDES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    """A program for each place and block; greedy tokens, and logits not finite, end here too."""
    i_place, i_block = tl.program_id(0), tl.program_id(1)
    slot = slot_of_place(state, batch, i_place)
    draws = tl.load(scratch.place_draws + i_place) != 0
    goes_on = i_block == 0
    if slot >= 0:
        p_logits = logits + i_place.to(tl.int64) * stride_logits
        if draws:
            _draw_block(
                state, batch, scratch, p_logits, i_place, i_block, slot,
                purpose_of_draw(state, slot, purpose), vocabulary, BLOCK,
            )  # fmt: skip
            goes_on = last_to_arrive(scratch.arrived + i_place, scratch.num_blocks)
        if goes_on:
            _finish(
                state, batch, scratch, tables, p_logits, i_place, slot, draws, role, purpose,
                vocabulary, CONFIDENCE, APPEND, SCAN_BLOCK, BLOCKS,
            )  # fmt: skip
            if ENDS:
                pass_on_step(state, tables, merges, words, slot, DECIDES)
    if ENDS:  # noqa: SIM102 - decided when this is compiled
        if goes_on:
            end_tick_of_writer(
                state, scratch.all_arrived, batch.max_places, tokens_per_page, end_tables,
                end_merges, words, DECIDES, BLOCK_S, CLOCK,
            )  # fmt: skip


@triton.jit
def _finish(
    state: tl.tuple,
    batch: tl.tuple,
    scratch: tl.tuple,
    tables: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    draws: tl.tensor,
    role: tl.tensor,
    purpose: tl.tensor,
    vocabulary: tl.tensor,
    CONFIDENCE: tl.constexpr,
    APPEND: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Of a place where every block has been drawn from, or none is to be."""
    position = tl.load(batch.place_position + i_place)
    guesses = tl.load(state.phase + slot) == _GUESS
    token = tl.load(batch.place_token + i_place)
    logprobs = tl.load(state.num_logprobs + slot) >= 0
    tl.debug_barrier()
    if draws:
        token = _draw(
            state, scratch, p_logits, i_place, slot, position,
            tl.where(guesses, _TARGET_TOKEN, purpose), vocabulary, BLOCK, BLOCKS,
        )  # fmt: skip
        token = tl.where((token >= 0) & (token < vocabulary), token, _NOT_FINITE)
        tl.store(batch.place_token + i_place, token)
    if (token >= 0) & logprobs:
        _token_logprob(state, scratch, p_logits, i_place, slot, position, token, vocabulary, BLOCK)
    if CONFIDENCE != 0:  # noqa: SIM102 - decided when this is compiled
        if (token >= 0) & ~guesses:
            add_confidence(
                state, scratch, p_logits, i_place, slot, token, vocabulary, CONFIDENCE, BLOCK
            )
    if APPEND:
        append_token(state, tables, slot, token, role)
