"""Append the sampled token and find the step's end, byte by byte.

Two automata: delimiters, reset at each step start, and stop strings, over the whole output.
Neither looks into the prompt. A token that carries bytes past the delimiter is replaced by the
canonical tokens of what stands before the cut, as text-level code would do.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_kernels.reference.sample import NOT_FINITE
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.slot_state import Finish, SlotState
from rsd_kernels.step_tables import StepTables


@dataclass(frozen=True)
class _Walk:
    """Where the automata stand after a token."""

    delimiter_state: int
    stop_state: int
    delimiter_bytes: int  # length of the delimiter that ended the step, 0 if none
    stopped: bool  # a stop string ended
    used: int  # bytes of the token up to the delimiter's end


def append(state: SlotState, batch: RowBatch, tables: StepTables, role: int) -> None:
    """Adds `next_token` to each complete sequence's row; sets `ended`, `finish`, `match_bytes`."""
    complete = batch.seq_complete.tolist()
    for s, b in enumerate(batch.seq_slot.tolist()):
        if complete[s]:
            state.step_source[b] = role
            _append_token(state, b, int(state.next_token[b]), tables)


def _append_token(state: SlotState, b: int, token: int, tables: StepTables) -> None:
    if token == NOT_FINITE:
        state.finish[b] = Finish.ERROR
        state.ended[b] = 1
        return
    length = int(state.length[b]) + 1
    state.tokens[b, length - 1] = token
    stop_token = length > int(state.min_length[b]) and token in state.stop_tokens[b].tolist()
    walk = _walk(state, b, token, tables, stops_count=length > int(state.min_length[b]))
    limit = int(state.limit[b])
    if walk.delimiter_bytes and not walk.stopped:
        length = _cut(state, b, token, walk.used, length, limit, tables)
    state.length[b] = length
    state.delimiter_state[b] = walk.delimiter_state
    state.stop_state[b] = walk.stop_state
    state.match_bytes[b] = walk.delimiter_bytes
    finish = Finish.NONE
    if stop_token:
        finish = Finish.STOP_TOKEN
    elif walk.stopped:
        finish = Finish.STOP_STRING
    elif length >= limit:
        finish = Finish.LENGTH
    state.finish[b] = finish
    step_tokens = length - int(state.committed[b])
    if finish or walk.delimiter_bytes or step_tokens >= int(state.max_step_tokens[b]):
        state.ended[b] = 1


def _walk(state: SlotState, b: int, token: int, tables: StepTables, *, stops_count: bool) -> _Walk:
    start, end = tables.token_start[token : token + 2].tolist()
    delimiter, stop = int(state.delimiter_state[b]), int(state.stop_state[b])
    for i, byte in enumerate(tables.token_byte[start:end].tolist()):
        delimiter = int(state.delimiter_next[b, delimiter, byte])
        stop = int(state.stop_next[b, stop, byte])
        matched = int(state.delimiter_match[b, delimiter])
        stopped = stops_count and int(state.stop_match[b, stop]) > 0
        if matched or stopped:
            return _Walk(delimiter, stop, matched, stopped, i + 1)
    return _Walk(delimiter, stop, 0, False, end - start)


def _cut(
    state: SlotState, b: int, token: int, used: int, length: int, limit: int, tables: StepTables
) -> int:
    """Replaces the last token by the canonical tokens of its first `used` bytes."""
    start, end = tables.token_start[token : token + 2].tolist()
    entry = int(tables.prefix_entry[token])
    if used == end - start or entry < 0:
        return length
    first, last = tables.prefix_start[entry + used - 1 : entry + used + 1].tolist()
    if first == last or length - 1 + last - first > limit:
        return length
    state.tokens[b, length - 1 : length - 1 + last - first] = tables.prefix_token[first:last]
    return length - 1 + last - first
