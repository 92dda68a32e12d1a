"""Append sampled tokens and find the step's end, byte by byte.

Two automata look for delimiters, from the start of each step, and for stop strings, over the whole
output; neither looks into the prompt. A token with bytes past a delimiter is replaced by the
canonical tokens of its bytes up to there, as code on text would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsd_kernels.guess.twin import add_guess, settle_guesses
from rsd_kernels.state.columns import host, number, write_at
from rsd_kernels.state.enums import MOVE_SHIFT, Finish, Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables

_COLUMNS = ("length", "delimiter_state", "stop_state", "match_bytes", "finish", "ended")


@dataclass(frozen=True)
class _Appended:
    """A slot after a new token."""

    tokens: list[int]  # appended: the token, or what replaces it
    columns: tuple[int, ...]  # the slot's new values, in the order of `_COLUMNS`


@dataclass(frozen=True)
class _Walk:
    """Where the automata stand after a token."""

    delimiter_state: int
    stop_state: int
    delimiter_bytes: int  # length of the delimiter that ended the step, 0 if none
    stopped: bool  # a stop string ended
    used: int  # bytes of the token up to the end of what matched


class _Slots:
    """What `append` reads of slots and vocabulary, as lists and numpy arrays."""

    def __init__(self, state: SlotState, tables: StepTables) -> None:
        self.token_start = host(tables.token_start)
        self.token_byte = host(tables.token_byte)
        self.length = host(state.length).tolist()
        self.committed = host(state.committed).tolist()
        self.length_limit = host(state.length_limit).tolist()
        self.min_length = host(state.min_length).tolist()
        self.max_step_tokens = host(state.max_step_tokens).tolist()
        self.delimiter_state = host(state.delimiter_state).tolist()
        self.stop_state = host(state.stop_state).tolist()
        self.stop_tokens = host(state.stop_tokens)
        self.delimiter_moves = host(state.delimiter_moves)
        self.stop_moves = host(state.stop_moves)


def append(state: SlotState, batch: RowBatch, tables: StepTables, role: int) -> None:
    """Appends what was drawn at the places of each sequence to its slot's context.

    Sets `length`, the states of the automata, `ended`, `finish`, `match_bytes` and `step_source`.
    Where the draft guesses for the target, its token becomes a guess instead.
    """
    n = number(state.num_seqs)
    if number(state.num_places) == 0:
        return
    slots = _Slots(state, tables)
    places, tokens = host(batch.seq_place).tolist(), host(batch.place_token).tolist()
    guesses = host(state.phase) == Phase.GUESS
    appended: dict[int, tuple[int, ...]] = {}
    for s, b in enumerate(host(batch.seq_slot)[:n].tolist()):
        drawn = tokens[places[s] : places[s + 1]]
        if drawn and guesses[b]:
            add_guess(state, b, drawn[0], len(slots.token_start) - 1)
        elif drawn:
            appended[b] = _append_drawn(state, slots, tables, b, drawn, role)
    written = list(appended)
    columns = zip(*appended.values(), strict=True)
    for name, values in zip(_COLUMNS, columns, strict=bool(written)):
        write_at(getattr(state, name), written, values)
    write_at(state.step_source, written, role)


def append_given(
    state: SlotState, slot: int, ids: Sequence[int], tables: StepTables, role: int
) -> int:
    """Appends ids that a model elsewhere has written to one slot's context, up to its step's end.

    For the host, on any device; it sets what `append` sets, and records no logprobs.

    Returns:
        How many of the ids it took, at least one. The step may not have ended (`ended`).
    """
    slots, taken = _Slots(state, tables), 0
    for token in ids:
        after = _append_token(slots, tables, slot, token)
        _write(state, slot, slots.length[slot], after.tokens)
        taken += 1
        length, delimiter_state, stop_state, *_, ended = after.columns
        slots.length[slot] = length
        slots.delimiter_state[slot] = delimiter_state
        slots.stop_state[slot] = stop_state
        if ended:
            break
    for name, value in zip(_COLUMNS, after.columns, strict=True):
        write_at(getattr(state, name), slot, value)
    write_at(state.step_source, slot, role)
    return taken


def _append_drawn(
    state: SlotState, slots: _Slots, tables: StepTables, b: int, drawn: list[int], role: int
) -> tuple[int, ...]:
    """Appends the first token, and another one as long as the last was what had been guessed.

    Returns the slot's new values, in the order of `_COLUMNS`.
    """
    guessed = _guessed(state, b) if role == Role.TARGET else []
    kept, right = 0, False
    for at, token in enumerate(drawn):
        place = slots.length[b]
        after = _append_token(slots, tables, b, token)
        _write(state, b, place, after.tokens)
        slots.length[b], slots.delimiter_state[b], slots.stop_state[b], *_, ended = after.columns
        right = after.tokens == guessed[at : at + 1]
        kept += right and at + 1 < len(drawn)
        if ended or not right:
            break
    if role == Role.TARGET and number(state.speculation, b):
        made, goes_on = len(drawn) - 1, right and not ended
        settle_guesses(
            state, b, place=place, made=made, kept=kept, wrong=not right and at < made,
            goes_on=goes_on,
        )  # fmt: skip
    return after.columns


def _guessed(state: SlotState, b: int) -> list[int]:
    """The guesses that stand behind the slot's tokens."""
    first, end = number(state.length, b), number(state.guess_end, b)
    return [int(token) for token in host(state.tokens)[b, first:end]] if end > first else []


def _write(state: SlotState, b: int, first: int, tokens: list[int]) -> None:
    last = first + len(tokens)
    write_at(state.tokens, (b, slice(first, last)), tokens)
    if last > first + 1:  # the first token carries all the logprob
        state.token_logprob[b, first + 1 : last] = 0.0
        state.token_rank[b, first + 1 : last] = 1
        state.top_logprob[b, first + 1 : last] = state.top_logprob[b, first]
        state.top_token[b, first + 1 : last] = state.top_token[b, first]


def _append_token(slots: _Slots, tables: StepTables, b: int, token: int) -> _Appended:
    length = slots.length[b]
    if not 0 <= token < len(slots.token_start) - 1:  # NOT_FINITE, or no id at all
        return _Appended([], (length, 0, slots.stop_state[b], 0, Finish.ERROR, 1))
    stops_count = length + 1 > slots.min_length[b]
    start, end = slots.token_start[token : token + 2]
    data = slots.token_byte[start:end].tolist()
    walk = _walk(slots, b, data, stops_count)
    tokens = [token]
    if walk.delimiter_bytes and not walk.stopped and walk.used < len(data):
        tokens = _replacement(token, walk.used, slots.length_limit[b] - length, tables)
    length += len(tokens)
    finish = Finish.NONE
    if stops_count and token in slots.stop_tokens[b]:
        finish = Finish.STOP_TOKEN
    elif walk.stopped:
        finish = Finish.STOP_STRING
    elif length >= slots.length_limit[b]:
        finish = Finish.LENGTH
    full = length - slots.committed[b] >= slots.max_step_tokens[b]
    ended = int(bool(finish or walk.delimiter_bytes or full))
    state = (walk.delimiter_state, walk.stop_state, walk.delimiter_bytes)
    return _Appended(tokens, (length, *state, finish, ended))


def _walk(slots: _Slots, b: int, data: list[int], stops_count: bool) -> _Walk:
    delimiter, stop = slots.delimiter_state[b], slots.stop_state[b]
    delimiter_moves, stop_moves = slots.delimiter_moves[b], slots.stop_moves[b]
    for used, byte in enumerate(data, start=1):
        matched, delimiter = divmod(int(delimiter_moves[delimiter, byte]), 1 << MOVE_SHIFT)
        stop_bytes, stop = divmod(int(stop_moves[stop, byte]), 1 << MOVE_SHIFT)
        stopped = stops_count and stop_bytes > 0
        if matched or stopped:
            return _Walk(delimiter, stop, matched, stopped, used)
    return _Walk(delimiter, stop, 0, False, len(data))


def _replacement(token: int, used: int, room: int, tables: StepTables) -> list[int]:
    """Canonical tokens of the first `used` bytes of `token`; itself if there is none or no room."""
    entry = int(tables.prefix_entry[token])
    if entry < 0:
        return [token]
    first, last = tables.prefix_start[entry + used - 1 : entry + used + 1].tolist()
    fits = first < last and last - first <= room
    return list(tables.prefix_token[first:last].tolist()) if fits else [token]
