"""Append the sampled token and find the step's end, byte by byte, one lane a sequence.

delimiter = next[delimiter, byte]; stop = stop_next[stop, byte]; ends where either matches

Twin: `rsd_kernels.reference.append`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.control_args import (
    batch_args,
    check_state,
    check_tables,
    state_args,
    table_args,
    warps_for,
)
from rsd_kernels.reference.sample import NOT_FINITE
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.settle import complete_lanes
from rsd_kernels.slot_state import (
    MAX_DELIMITER_STATES,
    MAX_LOGPROBS,
    MAX_STOP_STATES,
    MAX_STOP_TOKENS,
    NUM_ROLES,
    Finish,
    SlotState,
)
from rsd_kernels.step_tables import StepTables
from rsd_kernels.triton_support import Launch, next_power_of_2

_NOT_FINITE = tl.constexpr(NOT_FINITE)
_DELIMITER_STATES = tl.constexpr(MAX_DELIMITER_STATES)
_STOP_STATES = tl.constexpr(MAX_STOP_STATES)
_STOP_TOKENS = tl.constexpr(MAX_STOP_TOKENS)
_MAX_LOGPROBS = tl.constexpr(MAX_LOGPROBS)
_LOGPROB_LANES = tl.constexpr(next_power_of_2(MAX_LOGPROBS))
_STOP_TOKEN = tl.constexpr(int(Finish.STOP_TOKEN))
_STOP_STRING = tl.constexpr(int(Finish.STOP_STRING))
_LENGTH = tl.constexpr(int(Finish.LENGTH))
_ERROR = tl.constexpr(int(Finish.ERROR))


@triton.jit
def _walk(
    state: tl.tuple,
    tables: tl.tuple,
    b_slot: tl.tensor,
    m_lane: tl.tensor,
    b_token: tl.tensor,
    b_counts: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """Runs both automata over each token's bytes up to the first match."""
    o_slot = b_slot.to(tl.int64)
    b_delimiter = tl.load(state.delimiter_state + b_slot, mask=m_lane, other=0)
    b_stop = tl.load(state.stop_state + b_slot, mask=m_lane, other=0)
    b_start = tl.load(tables.token_start + b_token, mask=m_lane, other=0)
    b_bytes = tl.load(tables.token_start + b_token + 1, mask=m_lane, other=0) - b_start
    b_matched, b_stopped = b_slot * 0, b_slot * 0
    b_used = b_bytes
    most = tl.max(tl.where(m_lane, b_bytes, 0))
    i = 0
    while i < most:
        m_on = m_lane & (i < b_bytes) & (b_matched == 0) & (b_stopped == 0)
        b_byte = tl.load(tables.token_byte + b_start + i, mask=m_on, other=0).to(tl.int32)
        o_delimiter = (o_slot * _DELIMITER_STATES + b_delimiter) * 256 + b_byte
        o_stop = (o_slot * _STOP_STATES + b_stop) * 256 + b_byte
        b_next = tl.load(state.delimiter_next + o_delimiter, mask=m_on, other=0).to(tl.int32)
        b_delimiter = tl.where(m_on, b_next, b_delimiter)
        b_next = tl.load(state.stop_next + o_stop, mask=m_on, other=0).to(tl.int32)
        b_stop = tl.where(m_on, b_next, b_stop)
        p_match = state.delimiter_match + o_slot * _DELIMITER_STATES + b_delimiter
        b_match = tl.load(p_match, mask=m_on, other=0).to(tl.int32)
        p_match = state.stop_match + o_slot * _STOP_STATES + b_stop
        b_end = tl.load(p_match, mask=m_on & b_counts, other=0).to(tl.int32)
        b_matched = tl.where(m_on, b_match, b_matched)
        b_stopped = tl.where(m_on, tl.where(b_end != 0, 1, 0), b_stopped)
        b_used = tl.where(m_on & ((b_match != 0) | (b_end != 0)), i + 1, b_used)
        i += 1
    return b_delimiter, b_stop, b_matched, b_stopped, b_used, b_bytes


@triton.jit
def _write_tokens(
    state: tl.tuple,
    tables: tl.tuple,
    b_slot: tl.tensor,
    m_lane: tl.tensor,
    b_token: tl.tensor,
    b_length: tl.tensor,
    b_first: tl.tensor,
    b_count: tl.tensor,
    m_cut: tl.tensor,
) -> None:
    """The token, or what replaces it; all its logprob stands at its first position."""
    o_row = b_slot.to(tl.int64) * state.row_len + b_length
    o_top = tl.arange(0, _LOGPROB_LANES)[None, :]
    most = tl.max(tl.where(m_lane, b_count, 0))
    i = 0
    while i < most:
        m_on = m_lane & (i < b_count)
        b_piece = tl.load(tables.prefix_token + b_first + i, mask=m_on & m_cut, other=0)
        tl.store(state.tokens + o_row + i, tl.where(m_cut, b_piece, b_token), mask=m_on)
        if i > 0:
            m_top = m_on[:, None] & (o_top < _MAX_LOGPROBS)
            o_from = o_row[:, None] * _MAX_LOGPROBS + o_top
            o_to = o_from + i * _MAX_LOGPROBS
            b_value = tl.load(state.top_logprob + o_from, mask=m_top, other=0.0)
            b_id = tl.load(state.top_token + o_from, mask=m_top, other=0)
            tl.store(state.token_logprob + o_row + i, (b_length * 0).to(tl.float32), mask=m_on)
            tl.store(state.top_logprob + o_to, b_value, mask=m_top)
            tl.store(state.top_token + o_to, b_id, mask=m_top)
        i += 1


@triton.jit
def append_kernel(
    state: tl.tuple, batch: tl.tuple, tables: tl.tuple, role: tl.tensor, BLOCK_S: tl.constexpr
) -> None:
    _, b_slot, m_lane = complete_lanes(state, batch, BLOCK_S)
    b_token = tl.load(state.next_token + b_slot, mask=m_lane, other=_NOT_FINITE)
    b_length = tl.load(state.length + b_slot, mask=m_lane, other=0)
    b_limit = tl.load(state.limit + b_slot, mask=m_lane, other=0)
    b_committed = tl.load(state.committed + b_slot, mask=m_lane, other=0)
    b_max_step = tl.load(state.max_step_tokens + b_slot, mask=m_lane, other=0)
    b_counts = b_length + 1 > tl.load(state.min_length + b_slot, mask=m_lane, other=0)
    m_good = m_lane & (b_token != _NOT_FINITE)
    b_delimiter, b_stop, b_matched, b_stopped, b_used, b_bytes = _walk(
        state, tables, b_slot, m_good, b_token, b_counts
    )
    m_cut = m_good & (b_matched != 0) & (b_stopped == 0) & (b_used < b_bytes)
    b_entry = tl.load(tables.prefix_entry + b_token, mask=m_cut, other=-1)
    m_cut = m_cut & (b_entry >= 0)
    p_start = tables.prefix_start + b_entry + b_used
    b_first = tl.load(p_start - 1, mask=m_cut, other=0)
    b_count = tl.load(p_start, mask=m_cut, other=0) - b_first
    m_cut = m_cut & (b_count > 0) & (b_count <= b_limit - b_length)
    b_count = tl.where(m_cut, b_count, 1)
    _write_tokens(state, tables, b_slot, m_good, b_token, b_length, b_first, b_count, m_cut)
    b_length += tl.where(m_good, b_count, 0)
    o_stop = tl.arange(0, _STOP_TOKENS)[None, :]
    p_stop = state.stop_tokens + b_slot[:, None] * _STOP_TOKENS + o_stop
    b_ids = tl.load(p_stop, mask=m_good[:, None], other=-1)
    b_is_stop = tl.max(tl.where(b_ids == b_token[:, None], 1, 0), 1)
    b_finish = tl.where(b_length >= b_limit, _LENGTH, 0)
    b_finish = tl.where(b_stopped != 0, _STOP_STRING, b_finish)
    b_finish = tl.where(b_counts & (b_is_stop != 0), _STOP_TOKEN, b_finish)
    b_finish = tl.where(m_good, b_finish, _ERROR)
    m_full = b_length - b_committed >= b_max_step
    b_ended = tl.where((b_finish != 0) | (b_matched != 0) | m_full, 1, 0)
    b_zero = b_slot * 0
    tl.debug_barrier()  # every warp has read the columns before one of them is overwritten
    tl.store(state.length + b_slot, b_length, mask=m_lane)
    tl.store(state.delimiter_state + b_slot, tl.where(m_good, b_delimiter, 0), mask=m_lane)
    tl.store(state.stop_state + b_slot, b_stop, mask=m_good)
    tl.store(state.match_bytes + b_slot, tl.where(m_good, b_matched, 0), mask=m_lane)
    tl.store(state.finish + b_slot, b_finish, mask=m_lane)
    tl.store(state.ended + b_slot, b_ended, mask=m_lane)
    tl.store(state.step_source + b_slot, b_zero + role, mask=m_lane)


def append(state: SlotState, batch: RowBatch, tables: StepTables, role: int) -> None:
    """Adds `next_token` to each complete sequence's row; see the twin.

    Raises:
        ValueError: a tensor's strides or device is not one it can take, or `role` is not a role.
    """
    check_state(state, batch)
    check_tables(state, tables)
    if not 0 <= role < NUM_ROLES:
        raise ValueError(f"role is {role}; it must be 0 to {NUM_ROLES - 1}")
    append_launch(state, batch, tables, role).run()


def append_launch(state: SlotState, batch: RowBatch, tables: StepTables, role: int) -> Launch:
    args = {
        "state": state_args(state),
        "batch": batch_args(batch),
        "tables": table_args(tables),
        "role": int(role),
        "BLOCK_S": next_power_of_2(max(batch.num_seqs, 2)),
    }
    return Launch(append_kernel, (1,), args, num_warps=warps_for(batch.num_seqs))
