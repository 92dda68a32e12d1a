"""Pack the rows of one role and take their pages: the part of `schedule` that goes slot by slot.

A lane is a slot, and what is chosen slot by slot stays in registers, so the loop over slots waits
for no memory; rows and pages are written at the end. Precondition, as everywhere: a role holds the
pages of its kv_len tokens.

Twin: `_pack` and `_fill` in `rsd_kernels.schedule.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.rollback.kernel import give_up
from rsd_kernels.state.enums import Role

_PRM = tl.constexpr(int(Role.PRM))
_NEVER = tl.constexpr((1 << 63) - 1)
_SLOT_BITS = tl.constexpr(16)
_SLOT_MASK = tl.constexpr((1 << 16) - 1)
MAX_SLOTS = 1 << 16


@triton.jit
def _order_key(b_one: tl.tensor, b_arrival: tl.tensor, b_slot: tl.tensor) -> tl.tensor:
    """Smaller goes first: decode rows, then the oldest, then the first slot."""
    b_chunk = tl.where(b_one, 0, 1).to(tl.int64)
    return (((b_chunk << 33) + b_arrival.to(tl.int64)) << _SLOT_BITS) + b_slot.to(tl.int64)


@triton.jit
def _pick(b_values: tl.tensor, m_chosen: tl.tensor) -> tl.tensor:
    return tl.sum(tl.where(m_chosen, b_values, 0))


@triton.jit
def _fill_rows(
    state: tl.tuple,
    batch: tl.tuple,
    role: tl.tensor,
    kv_role: tl.tensor,
    tokens_per_page: tl.tensor,
    num_rows: tl.tensor,
    o_row: tl.tensor,
    b_slot: tl.tensor,
    b_position: tl.tensor,
    b_held: tl.tensor,
    b_free: tl.tensor,
) -> None:
    """Writes the packed rows; new pages come off the stack as it was before this pass."""
    m_row = o_row < num_rows
    b_index = b_position // tokens_per_page
    b_offset = b_position - b_index * tokens_per_page
    o_slot = b_slot.to(tl.int64)
    p_table = state.page_table + (o_slot + kv_role * state.num_slots) * state.num_columns + b_index
    m_new = m_row & (b_index >= b_held)
    p_fresh = state.free_pages + (b_free - 1 - (b_index - b_held))
    b_fresh = tl.load(p_fresh, mask=m_new, other=0)
    b_page = tl.where(m_new, b_fresh, tl.load(p_table, mask=m_row & ~m_new, other=0))
    m_prm = m_row & (role == _PRM)
    b_token = tl.load(
        state.tokens + o_slot * state.max_len + b_position, mask=m_row & (role != _PRM), other=0
    ) + tl.load(state.prm_tokens + o_slot * state.prm_max_len + b_position, mask=m_prm, other=0)
    tl.store(batch.slot + o_row, b_slot, mask=m_row)
    tl.store(batch.position + o_row, b_position, mask=m_row)
    tl.store(batch.token + o_row, b_token, mask=m_row)
    tl.store(batch.page + o_row, b_page, mask=m_row)
    tl.store(batch.offset + o_row, b_offset, mask=m_row)
    # The first row on a new page enters it into the table; no other row writes that entry.
    m_first = m_new & (b_offset == 0)
    tl.store(p_table, b_page, mask=m_first)
    tl.store(state.page_owners + b_page, o_row * 0 + 1, mask=m_first)
    tl.atomic_add(state.page_stamp + b_page, 1, mask=m_first, sem="relaxed")


@triton.jit
def _own_pages(
    state: tl.tuple,
    kv_role: tl.tensor,
    tokens_per_page: tl.tensor,
    b_slot: tl.tensor,
    m_ready: tl.tensor,
    b_start: tl.tensor,
    b_held: tl.tensor,
    num_free: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Sees to it that no page is written that others own too: they keep it.

    Returns where each slot goes on reading, the pages it holds, and the pages that are free.
    """
    o_role = kv_role * state.num_slots + b_slot
    b_index = b_start // tokens_per_page
    m_held = m_ready & (b_index < b_held)
    p_page = state.page_table + o_role.to(tl.int64) * state.num_columns + b_index
    b_page = tl.load(p_page, mask=m_held, other=0)
    m_left = m_held & (tl.load(state.page_owners + b_page, mask=m_held, other=1) > 1)
    lanes: tl.constexpr = b_slot.shape[0]
    lane = tl.min(tl.where(m_left, b_slot, lanes))
    if lane < lanes:
        table = state.page_table + kv_role.to(tl.int64) * state.num_slots * state.num_columns
        while lane < lanes:
            m_lane = b_slot == lane
            owners = tl.load(state.page_owners + _pick(b_page, m_lane))
            tl.debug_barrier()  # every warp has read the owners, the cursors and the pages held
            if owners > 1:  # a slot before this one may have given it up
                held, index = _pick(b_held, m_lane), _pick(b_index, m_lane)
                count = held - index
                num_free = give_up(
                    table, state.free_pages, state.page_owners, num_free, lane, held, held, held,
                    count, count * 0, count * 0, state.num_slots, state.num_columns,
                )  # fmt: skip
                b_held = tl.where(m_lane, index, b_held)
                b_start = tl.where(m_lane, index * tokens_per_page, b_start)
                tl.store(state.num_pages + kv_role * state.num_slots + lane, index)
                tl.store(state.kv_len + kv_role * state.num_slots + lane, index * tokens_per_page)
            lane = tl.min(tl.where(m_left & (b_slot > lane), b_slot, lanes))
        tl.store(state.num_free, num_free)
    return b_start, b_held, num_free


@triton.jit
def pack(
    state: tl.tuple,
    batch: tl.tuple,
    role: tl.tensor,
    kv_role: tl.tensor,
    tokens_per_page: tl.tensor,
    b_slot: tl.tensor,
    m_ready: tl.tensor,
    m_prompt: tl.tensor,
    b_end: tl.tensor,
    b_arrival: tl.tensor,
    b_guesses: tl.tensor,
    num_free: tl.tensor,
    o_row: tl.tensor,
    o_place: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Packs one role; returns its rows, sequences and places, and the pages left.

    Its pages are those of `kv_role`, a writer's where its model scores its own context. Of a prompt
    nothing is sampled. Guesses are read where rows, places and pages are left.
    """
    o_role = kv_role * state.num_slots + b_slot
    b_kv = tl.load(state.kv_len + o_role, mask=m_ready, other=0)
    b_held = tl.load(state.num_pages + o_role, mask=m_ready, other=0)
    # A writer needs a row to sample from even when it has read everything.
    b_start = tl.where(role == _PRM, b_kv, tl.minimum(b_kv, b_end - 1))
    b_start, b_held, num_free = _own_pages(
        state, kv_role, tokens_per_page, b_slot, m_ready, b_start, b_held, num_free
    )
    b_samples = tl.where(m_prompt, 0, 1)
    b_key = tl.where(m_ready, _order_key(b_end - b_start == 1, b_arrival, b_slot), _NEVER)
    b_row_slot, b_row_position = o_row * 0, o_row * 0
    b_row_held, b_row_free = o_row * 0, o_row * 0
    b_pages = b_held  # after this pass
    b_seq = b_slot * 0 - 1  # the slot's sequence in the pass
    b_stop = b_slot * 0
    b_lacks = b_slot * 0
    b_complete = b_slot * 0
    b_row_end, b_place_slot, b_place_position = o_place * 0, o_place * 0, o_place * 0
    left = tl.sum(tl.where(m_ready, 1, 0))
    spare = batch.max_places - left  # each may need a place
    rows = left * 0
    seqs = left * 0
    places = left * 0
    while (left > 0) & (rows < batch.max_rows):
        first = tl.min(b_key)
        slot = (first & _SLOT_MASK).to(tl.int32)
        m_slot = b_slot == slot
        b_key = tl.where(m_slot, _NEVER, b_key)
        start, end = _pick(b_start, m_slot), _pick(b_end, m_slot)
        held = _pick(b_held, m_slot)
        stop = tl.minimum(end, start + batch.max_rows - rows)
        room = batch.max_rows - rows - (stop - start)
        more = tl.minimum(tl.minimum(_pick(b_guesses, m_slot), spare), room)
        complete = (stop == end) & (_pick(b_samples, m_slot) == 1)
        more = tl.where(complete, more, 0)
        need = (stop + more + tokens_per_page - 1) // tokens_per_page - held
        more = tl.where(need > num_free, 0, more)
        need = tl.maximum((stop + more + tokens_per_page - 1) // tokens_per_page - held, 0)
        fits = need <= num_free
        asks = fits & complete & (role != _PRM)
        here = o_place - places
        m_place = asks & (here >= 0) & (here <= more)
        b_row_end = tl.where(m_place, rows + stop - start + here, b_row_end)
        b_place_slot = tl.where(m_place, slot, b_place_slot)
        b_place_position = tl.where(m_place, stop + here, b_place_position)
        b_complete = tl.where(m_slot & fits & complete, 1, b_complete)
        stop = stop + more
        b_lacks = tl.where(m_slot & ~fits, 1, b_lacks)
        m_taken = m_slot & fits
        b_pages = tl.where(m_taken, held + need, b_pages)
        b_seq = tl.where(m_taken, seqs, b_seq)
        b_stop = tl.where(m_taken, stop, b_stop)
        m_row = fits & (o_row >= rows) & (o_row < rows + stop - start)
        b_row_slot = tl.where(m_row, slot, b_row_slot)
        b_row_position = tl.where(m_row, start + o_row - rows, b_row_position)
        b_row_held = tl.where(m_row, held, b_row_held)
        b_row_free = tl.where(m_row, num_free, b_row_free)
        tl.store(batch.seq_start + seqs, rows, mask=fits)
        tl.store(batch.seq_place + seqs, places, mask=fits)
        num_free = num_free - tl.where(fits, need, 0)
        rows = rows + tl.where(fits, stop - start, 0)
        seqs = seqs + tl.where(fits, 1, 0)
        places = places + tl.where(asks, more + 1, 0)
        spare = spare - tl.where(fits, more, 0)
        left = left - 1
    m_seq = b_seq >= 0
    tl.store(state.lacks_pages + b_slot, b_lacks, mask=m_ready & (b_lacks == 1))
    tl.store(batch.seq_slot + b_seq, b_slot, mask=m_seq)
    tl.store(batch.seq_kv_len + b_seq, b_stop, mask=m_seq)
    tl.store(batch.seq_complete + b_seq, b_complete, mask=m_seq)
    tl.store(batch.seq_start + seqs, rows, mask=seqs > 0)
    tl.store(batch.seq_place + seqs, places, mask=seqs > 0)
    m_place = o_place < places
    tl.store(batch.place_row_end + o_place, b_row_end, mask=m_place)
    tl.store(batch.place_slot + o_place, b_place_slot, mask=m_place)
    tl.store(batch.place_position + o_place, b_place_position, mask=m_place)
    tl.debug_barrier()  # every warp has read the pages held
    tl.store(state.num_pages + o_role, b_pages, mask=m_seq)
    _fill_rows(
        state,
        batch,
        role,
        kv_role,
        tokens_per_page,
        rows,
        o_row,
        b_row_slot,
        b_row_position,
        b_row_held,
        b_row_free,
    )
    return rows, seqs, places, num_free


@triton.jit
def pad(
    batch: tl.tuple,
    num_rows: tl.tensor,
    num_seqs: tl.tensor,
    num_places: tl.tensor,
    o_row: tl.tensor,
    o_seq: tl.tensor,
    o_place: tl.tensor,
) -> None:
    """Fills what lies past the pass: rows without a page, sequences without rows, no places."""
    m_row = (o_row >= num_rows) & (o_row < batch.max_rows)
    b_zero = o_row * 0
    tl.store(batch.token + o_row, b_zero, mask=m_row)
    tl.store(batch.slot + o_row, b_zero, mask=m_row)
    tl.store(batch.position + o_row, b_zero, mask=m_row)
    tl.store(batch.page + o_row, b_zero - 1, mask=m_row)
    tl.store(batch.offset + o_row, b_zero, mask=m_row)
    m_seq = (o_seq >= num_seqs) & (o_seq < batch.max_seqs)
    b_none = o_seq * 0
    tl.store(batch.seq_slot + o_seq, b_none, mask=m_seq)
    tl.store(batch.seq_kv_len + o_seq, b_none, mask=m_seq)
    tl.store(batch.seq_complete + o_seq, b_none, mask=m_seq)
    tl.store(batch.seq_start + o_seq + 1, b_none + num_rows, mask=m_seq)
    tl.store(batch.seq_place + o_seq + 1, b_none + num_places, mask=m_seq)
    m_place = (o_place >= num_places) & (o_place < batch.max_places)
    tl.store(batch.place_row_end + o_place, o_place * 0, mask=m_place)
    tl.store(batch.place_slot + o_place, o_place * 0, mask=m_place)
    tl.store(batch.place_position + o_place, o_place * 0, mask=m_place)
