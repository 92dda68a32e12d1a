"""Choose one pass: the role, its packed rows and their pages.

The batching rule is the order in which the roles are tried. `MOST_READY`: the role with the most
ready slots first; scoring counts double, ties go PRM, target, draft. `EVERY_ROLE`: the roles in
turn, draft, PRM, target. `LOCK_STEP`, as in the paper's code: the same turns, but a role stays
until no slot waits for it. Under any of them a role that was passed over for too long goes first.
With one role a tick, no two roles race over rollback and pages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rsd_kernels.schedule.rules import LONGEST_PHASE, STARVED_AFTER, BatchingRule, kv_role
from rsd_kernels.state.columns import add_at, host, number, write, write_at
from rsd_kernels.state.enums import (
    LOG_HEADER,
    LOGPROB_WORDS,
    MAX_CUT_TOKENS,
    NUM_ROLES,
    HostRequest,
    Phase,
    Role,
)
from rsd_kernels.state.pages import own_page, take_pages
from rsd_kernels.state.phases import has_read_prompt, reads_prompt
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState, pages_for
from rsd_kernels.tick_clock.twin import begin_tick, end_tick

_ROLE_OF_PHASE = {
    Phase.DRAFT: Role.DRAFT,
    Phase.GUESS: Role.DRAFT,
    Phase.TARGET: Role.TARGET,
    Phase.SCORE: Role.PRM,
}
_TIE_ORDER = (Role.PRM, Role.TARGET, Role.DRAFT)


@dataclass(frozen=True)
class _Extend:
    """What a pass reads of one slot: tokens start:stop of its context.

    The last tokens are guesses that it verifies, as many as it says.
    """

    slot: int
    start: int
    stop: int
    complete: bool
    guesses: int


def schedule(
    state: SlotState,
    batch: RowBatch,
    tokens_per_page: tuple[int, int, int],
    rule: BatchingRule = BatchingRule.MOST_READY,
    prm_kv: Role = Role.PRM,
) -> None:
    """Writes the next pass into `batch`, or stops the loop (`running` = 0, no role).

    prm_kv: whose K/V and pages the PRM's passes use. Another role than the PRM is a writer whose
    model scores its own context: `prm_tokens` then has the same tokens up to `prm_committed`.

    The loop stops when the host asks for it, a slot waits for the host, the cap of ticks is
    reached, one more tick might overflow the log, or no slot can go on.
    """
    add_at(state.tick, 0, 1)
    begin_tick(state)
    num_buckets = state.row_buckets.shape[0]
    write_at(state.pass_role, 0, NUM_ROLES)
    write_at(state.pass_body, 0, NUM_ROLES * num_buckets)
    write_at(state.ended, slice(None), 0)
    if _must_return(state):
        _stop(state, batch)
        return
    ready = _ready_slots(state)
    write_at(state.lacks_pages, slice(None), 0)
    for role in _order(state, ready, rule):
        kv = kv_role(role, prm_kv)
        extends = _pack(state, batch, role, kv, ready[role], tokens_per_page[kv])
        if extends:
            _fill(state, batch, role, kv, extends, tokens_per_page[kv])
            _count_waits(state, role, ready)
            write_at(state.pass_role, 0, int(role))
            write_at(state.last_role, 0, int(role))
            write_at(state.pass_body, 0, role * num_buckets + _bucket(state))
            write_at(state.pass_start, 0, time.perf_counter_ns())
            return
    _stop(state, batch)


def advance(state: SlotState, batch: RowBatch, role: Role, prm_kv: Role = Role.PRM) -> None:
    """Moves the cursor of `role` over the rows its forward has just read; `prm_kv` as above."""
    elapsed = time.perf_counter_ns() - number(state.pass_start)
    n = number(state.num_seqs)
    starts = host(batch.seq_start)
    here = (role, host(batch.seq_slot)[:n])
    read = (kv_role(role, prm_kv), here[1])
    write_at(state.kv_len, read, host(batch.seq_kv_len)[:n])
    add_at(state.tokens_read, here, starts[1 : n + 1] - starts[:n])
    add_at(state.passes, here, 1)
    add_at(state.nanoseconds, here, elapsed // max(n, 1))  # shares, so that they add up


def _stop(state: SlotState, batch: RowBatch) -> None:
    """No pass, so no rows: bodies that run nevertheless, as in a warm-up, find nothing to do."""
    write_at(state.running, 0, 0)
    write_at(state.num_rows, 0, 0)
    write_at(state.num_seqs, 0, 0)
    write_at(state.num_places, 0, 0)
    _pad(batch, 0, 0, 0)
    end_tick(state)


def _must_return(state: SlotState) -> bool:
    phases = host(state.phase).tolist()
    asked = number(state.host_request)
    return (
        asked == HostRequest.RETURN
        or (asked == HostRequest.RETURN_WHEN_FREE and Phase.DONE in phases)
        or (Phase.DONE in phases and bool(host(state.lacks_pages).any()))  # its pages will do
        or Phase.WAIT_HOST in phases
        or Phase.CHOICE in phases
        or any(has_read_prompt(state, b) for b, p in enumerate(phases) if p == Phase.PROMPT)
        or number(state.tick) > number(state.tick_cap)
        or number(state.log_head) + _log_words_of_a_tick(state) > state.log.shape[0]
    )


def _log_words_of_a_tick(state: SlotState) -> int:
    """The most words that one tick can append: every slot decides a step, all guesses are kept."""
    asked = host(state.num_logprobs)
    words_per_token = np.where(asked < 0, 1, 1 + LOGPROB_WORDS + 2 * asked)
    end = np.maximum(host(state.length), host(state.guess_end))
    step_tokens = end - host(state.committed) + MAX_CUT_TOKENS
    return int((step_tokens * words_per_token + LOG_HEADER).sum())


def _ready_slots(state: SlotState) -> list[list[int]]:
    """The slots that each role could serve, oldest first."""
    columns = (state.phase, state.active, state.arrival)
    phase, active, arrival = (host(column).tolist() for column in columns)
    by_arrival = sorted((b for b in range(len(phase)) if active[b]), key=lambda b: arrival[b])
    ready: list[list[int]] = [[] for _ in Role]
    for b in by_arrival:
        role = _ROLE_OF_PHASE.get(phase[b])
        if role is not None:
            ready[role].append(b)
        elif phase[b] == Phase.PROMPT:
            for reader in Role:
                if reads_prompt(state, b, reader):
                    ready[reader].append(b)
    return ready


def _order(state: SlotState, ready: list[list[int]], rule: BatchingRule) -> list[Role]:
    waits, last = host(state.role_wait).tolist(), number(state.last_role)
    longest = LONGEST_PHASE if rule == BatchingRule.LOCK_STEP else STARVED_AFTER

    def rank(role: Role) -> tuple[int, int, int]:
        starved = waits[role] if waits[role] >= longest else 0
        return (-starved, *_place(rule, role, len(ready[role]), last))

    return sorted((role for role in Role if ready[role]), key=rank)


def _place(rule: BatchingRule, role: Role, num_ready: int, last: int) -> tuple[int, int]:
    """The smallest goes first."""
    if rule == BatchingRule.MOST_READY:
        weight = 2 if role == Role.PRM else 1
        return (-weight * num_ready, _TIE_ORDER.index(role))
    turns = (last - role) % NUM_ROLES  # from the last role: draft, PRM, target are 0, 2, 1
    return ((turns - 1) % NUM_ROLES if rule == BatchingRule.EVERY_ROLE else turns, 0)


def _pack(
    state: SlotState,
    batch: RowBatch,
    role: Role,
    kv: Role,
    slots: list[int],
    tokens_per_page: int,
) -> list[_Extend]:
    """Decode rows first, then chunks, in order of arrival; a slot gets all its pages or none.

    Guesses are read where rows, places and pages are left.
    """
    ends, guesses = _ends(state, role)
    prompts = (host(state.phase) == Phase.PROMPT).tolist()
    starts = _starts(state, role, kv, ends)
    for b in sorted(slots):
        starts[b] = own_page(state, kv, b, starts[b], tokens_per_page)
    held = host(state.num_pages)[kv].tolist()
    decode_first = sorted(slots, key=lambda b: ends[b] - starts[b] != 1)
    extends: list[_Extend] = []
    room, spare = batch.num_rows, batch.num_places - len(slots)  # each may need a place
    for b in decode_first:
        if room == 0:
            break
        stop = min(ends[b], starts[b] + room)
        complete = stop == ends[b] and not prompts[b]
        more = min(guesses[b], spare, room - (stop - starts[b])) if complete else 0
        need, free = pages_for(stop + more, tokens_per_page) - held[b], number(state.num_free)
        if more and need > free:
            more, need = 0, pages_for(stop, tokens_per_page) - held[b]
        if need > free:
            state.lacks_pages[b] = 1
            continue
        take_pages(state, kv, b, need)
        extends.append(_Extend(b, starts[b], stop + more, complete, more))
        room -= stop + more - starts[b]
        spare -= more
    return extends


def _starts(state: SlotState, role: Role, kv: Role, ends: list[int]) -> list[int]:
    """Of each slot: where the role goes on reading.

    A writer needs a row to sample from even when it has read everything.
    """
    kv_len = host(state.kv_len)[kv].tolist()
    if role == Role.PRM:
        return kv_len
    return [min(n, end - 1) for n, end in zip(kv_len, ends, strict=True)]


def _ends(state: SlotState, role: Role) -> tuple[list[int], list[int]]:
    """Of each slot: the end of what the role has to read, and how many guesses it verifies."""
    length = host(state.length) - (host(state.phase) == Phase.PROMPT)
    if role == Role.PRM:
        return host(state.prm_length).tolist(), [0] * state.num_slots
    guessed = np.maximum(host(state.guess_end), length)
    if role == Role.TARGET:
        return length.tolist(), (guessed - length).tolist()
    guesses = host(state.phase) == Phase.GUESS
    return np.where(guesses, guessed, length).tolist(), [0] * state.num_slots


def _fill(
    state: SlotState,
    batch: RowBatch,
    role: Role,
    kv: Role,
    extends: list[_Extend],
    tokens_per_page: int,
) -> None:
    context = state.prm_tokens if role == Role.PRM else state.tokens
    starts = [0, *accumulate(e.stop - e.start for e in extends)]
    slot = np.array([e.slot for e in extends for _ in range(e.start, e.stop)])
    position = np.array([at for e in extends for at in range(e.start, e.stop)])
    write(batch.slot, slot)
    write(batch.position, position)
    write(batch.token, host(context)[slot, position])
    write(batch.page, host(state.page_table)[kv, slot, position // tokens_per_page])
    write(batch.offset, position % tokens_per_page)
    write(batch.seq_slot, [e.slot for e in extends])
    write(batch.seq_start, starts)
    write(batch.seq_kv_len, [e.stop for e in extends])
    write(batch.seq_complete, [int(e.complete) for e in extends])
    places = _fill_places(batch, role, extends, starts)
    write_at(state.num_rows, 0, starts[-1])
    write_at(state.num_seqs, 0, len(extends))
    write_at(state.num_places, 0, places)
    _pad(batch, starts[-1], len(extends), places)


def _fill_places(batch: RowBatch, role: Role, extends: list[_Extend], starts: list[int]) -> int:
    """A place behind the last row and each guess of what a writer reads to its end."""
    writes = role != Role.PRM
    counts = [e.guesses + 1 if writes and e.complete else 0 for e in extends]
    write(batch.seq_place, [0, *accumulate(counts)])
    row_end, slot, position = [], [], []
    for e, start, count in zip(extends, starts, counts, strict=False):
        for end in range(e.stop - count + 1, e.stop + 1):
            row_end.append(start + end - e.start)
            slot.append(e.slot)
            position.append(end)
    write(batch.place_row_end, row_end)
    write(batch.place_slot, slot)
    write(batch.place_position, position)
    return len(slot)


def _pad(batch: RowBatch, num_rows: int, num_seqs: int, num_places: int) -> None:
    """Fills what lies past the pass: rows without a page, sequences without rows, no places."""
    for column, value in ((batch.token, 0), (batch.slot, 0), (batch.position, 0),
                          (batch.page, -1), (batch.offset, 0)):  # fmt: skip
        write_at(column, slice(num_rows, None), value)
    for column in (batch.seq_slot, batch.seq_kv_len, batch.seq_complete):
        write_at(column, slice(num_seqs, None), 0)
    write_at(batch.seq_start, slice(num_seqs + 1, None), num_rows)
    write_at(batch.seq_place, slice(num_seqs + 1, None), num_places)
    for column in (batch.place_row_end, batch.place_slot, batch.place_position):
        write_at(column, slice(num_places, None), 0)


def _bucket(state: SlotState) -> int:
    """The smallest bucket that holds the rows of the pass."""
    return int(host(state.row_buckets).searchsorted(number(state.num_rows)))


def _count_waits(state: SlotState, chosen: Role, ready: list[list[int]]) -> None:
    waits = host(state.role_wait).tolist()
    write(
        state.role_wait,
        [waits[r] + 1 if ready[r] and r != chosen else 0 for r in range(NUM_ROLES)],
    )
