"""Choose one pass, pack its rows and take their pages: one program, one launch.

The role is the first, in the order of the batching rule, that has ready slots and gets rows; a role
passed over for too long goes first. MOST_READY: by 2 |ready(PRM)|, |ready(target)|, |ready(draft)|.
EVERY_ROLE: draft, PRM, target in turn. LOCK_STEP: the last role, then in turn. To read its tokens
start:stop a slot needs ceil(stop / tokens_per_page) pages: it gets all of them, or it waits. A page
that others own too is given up, not written, and its tokens are read again.

Twin: `rsd_kernels.schedule.twin`.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

from rsd_kernels.launch import Launch, interpreting, next_power_of_2
from rsd_kernels.schedule.pack import MAX_SLOTS, pack, pad
from rsd_kernels.schedule.rules import LONGEST_PHASE, STARVED_AFTER, BatchingRule, kv_role
from rsd_kernels.state.args import batch_args, check_state, page_sizes, state_args
from rsd_kernels.state.enums import (
    LOG_HEADER,
    LOGPROB_WORDS,
    MAX_CUT_TOKENS,
    NUM_ROLES,
    HostRequest,
    Phase,
    Role,
)
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.tick_clock.kernel import begin_tick, end_tick

_HEADER = tl.constexpr(LOG_HEADER)
_LOGPROB_WORDS = tl.constexpr(LOGPROB_WORDS)
_CUT_TOKENS = tl.constexpr(MAX_CUT_TOKENS)
_NUM_ROLES = tl.constexpr(NUM_ROLES)
_STARVED_AFTER = tl.constexpr(STARVED_AFTER)
_LONGEST_PHASE = tl.constexpr(LONGEST_PHASE)
_MOST_READY = tl.constexpr(int(BatchingRule.MOST_READY))
_EVERY_ROLE = tl.constexpr(int(BatchingRule.EVERY_ROLE))
_LOCK_STEP = tl.constexpr(int(BatchingRule.LOCK_STEP))
_DRAFT = tl.constexpr(int(Role.DRAFT))
_TARGET = tl.constexpr(int(Role.TARGET))
_PRM = tl.constexpr(int(Role.PRM))
_PHASE_DRAFT = tl.constexpr(int(Phase.DRAFT))
_PHASE_SCORE = tl.constexpr(int(Phase.SCORE))
_PHASE_TARGET = tl.constexpr(int(Phase.TARGET))
_PHASE_WAIT_HOST = tl.constexpr(int(Phase.WAIT_HOST))
_PHASE_DONE = tl.constexpr(int(Phase.DONE))
_PHASE_GUESS = tl.constexpr(int(Phase.GUESS))
_PHASE_PROMPT = tl.constexpr(int(Phase.PROMPT))
_PHASE_CHOICE = tl.constexpr(int(Phase.CHOICE))
_RETURN = tl.constexpr(int(HostRequest.RETURN))
_RETURN_WHEN_FREE = tl.constexpr(int(HostRequest.RETURN_WHEN_FREE))
MAX_WARPS_ROWS = 64  # rows up to which one warp fills a pass


@triton.jit
def _same_for_all(state: tl.tuple, asked: tl.tensor) -> tl.tensor:
    """What one thread read, for all threads.

    Each has loaded `asked` for itself, some perhaps before the host's write and some after it, and
    warps that disagree on whether to return would wait at different barriers. A scalar is stored by
    one thread. `pass_role` is free to carry it: it is written again where the schedule ends.
    """
    tl.store(state.pass_role, asked)
    tl.debug_barrier()
    return tl.load(state.pass_role)


@triton.jit
def _reads_prompt(
    state: tl.tuple, b_slot: tl.tensor, m_prompt: tl.tensor, b_end: tl.tensor, ROLE: tl.constexpr
) -> tl.tensor:
    """Whether a role has yet to read the prompt of each slot of `m_prompt`, up to `b_end`."""
    b_roles = tl.load(state.prompt_roles + b_slot, mask=m_prompt, other=0)
    b_kv = tl.load(state.kv_len + ROLE * state.num_slots + b_slot, mask=m_prompt, other=0)
    return m_prompt & ((b_roles >> ROLE) % 2 == 1) & (b_kv < b_end)


@triton.jit
def _must_return(
    state: tl.tuple, b_slot: tl.tensor, m_slot: tl.tensor, tick: tl.tensor
) -> tl.tensor:
    """Whether to stop: asked to, a slot waits for the host, or ticks or log have run out.

    One whose output has ended waits where another lacks the pages that it still has.
    """
    asked = tl.load(state.host_request, volatile=True)  # the host writes it at any time
    b_phase = tl.load(state.phase + b_slot, mask=m_slot, other=0)
    b_top = tl.load(state.num_logprobs + b_slot, mask=m_slot, other=0)
    b_length = tl.load(state.length + b_slot, mask=m_slot, other=0)
    b_committed = tl.load(state.committed + b_slot, mask=m_slot, other=0)
    b_guessed = tl.load(state.guess_end + b_slot, mask=m_slot, other=0)
    b_lacks = tl.load(state.lacks_pages + b_slot, mask=m_slot, other=0)
    b_active = tl.load(state.active + b_slot, mask=m_slot, other=0)
    m_prompt = m_slot & (b_phase == _PHASE_PROMPT) & (b_active != 0)
    m_reads = _reads_prompt(state, b_slot, m_prompt, b_length - 1, _DRAFT)
    m_reads = m_reads | _reads_prompt(state, b_slot, m_prompt, b_length - 1, _TARGET)
    b_prm_length = tl.load(state.prm_length + b_slot, mask=m_prompt, other=0)
    m_reads = m_reads | _reads_prompt(state, b_slot, m_prompt, b_prm_length, _PRM)
    b_tokens = tl.maximum(b_length, b_guessed) - b_committed + _CUT_TOKENS
    b_words = b_tokens * tl.where(b_top < 0, 1, 2 * b_top + 1 + _LOGPROB_WORDS) + _HEADER
    words = tl.sum(tl.where(m_slot, b_words, 0))
    done = tl.max(tl.where(b_phase == _PHASE_DONE, 1, 0))
    lacks = tl.max(b_lacks)
    m_waits = (b_phase == _PHASE_WAIT_HOST) | (b_phase == _PHASE_CHOICE) | (m_prompt & ~m_reads)
    waiting = tl.max(tl.where(m_waits, 1, 0))
    asked = _same_for_all(state, asked)
    return (
        (asked == _RETURN)
        | ((asked == _RETURN_WHEN_FREE) & (done == 1))
        | ((lacks != 0) & (done == 1))
        | (waiting == 1)
        | (tick > tl.load(state.tick_cap))
        | (tl.load(state.log_head) + words > state.log_words)
    )


@triton.jit
def _rank(
    count: tl.tensor, wait: tl.tensor, last: tl.tensor, ROLE: tl.constexpr, RULE: tl.constexpr
) -> tl.tensor:
    """Larger goes first; -1 if no slot is ready."""
    longest: tl.constexpr = _LONGEST_PHASE if RULE == _LOCK_STEP else _STARVED_AFTER
    if RULE == _MOST_READY:
        weight: tl.constexpr = 2 if ROLE == _PRM else 1
        place = (weight * count) * 4 + ROLE  # ties: PRM, target, draft
    elif RULE == _EVERY_ROLE:
        place = 2 - (last + 2 - ROLE) % 3
    else:
        place = 2 - (last + 3 - ROLE) % 3
    starved = tl.where(wait >= longest, wait, 0).to(tl.int64)
    return tl.where(count > 0, (starved << 32) + place, -1)


@triton.jit
def _choose(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    b_slot: tl.tensor,
    m_slot: tl.tensor,
    o_row: tl.tensor,
    o_place: tl.tensor,
    RULE: tl.constexpr,
    PRM_KV: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Tries the roles in order; returns the one that got rows (NUM_ROLES if none), and how many."""
    m_active = m_slot & (tl.load(state.active + b_slot, mask=m_slot, other=0) != 0)
    b_phase = tl.load(state.phase + b_slot, mask=m_slot, other=0)
    b_arrival = tl.load(state.arrival + b_slot, mask=m_slot, other=0)
    b_length = tl.load(state.length + b_slot, mask=m_slot, other=0)
    b_prm_length = tl.load(state.prm_length + b_slot, mask=m_slot, other=0)
    m_guesses = b_phase == _PHASE_GUESS
    b_guessed = tl.load(state.guess_end + b_slot, mask=m_slot, other=0)
    m_prompt = m_active & (b_phase == _PHASE_PROMPT)
    # Of a writer's prompt the last token stays: it samples from there.
    b_length = tl.where(m_prompt, b_length - 1, b_length)
    b_guessed = tl.maximum(b_guessed, b_length)
    m_draft = m_active & ((b_phase == _PHASE_DRAFT) | m_guesses)
    m_draft = m_draft | _reads_prompt(state, b_slot, m_prompt, b_length, _DRAFT)
    m_target = m_active & (b_phase == _PHASE_TARGET)
    m_target = m_target | _reads_prompt(state, b_slot, m_prompt, b_length, _TARGET)
    m_score = m_active & (b_phase == _PHASE_SCORE)
    m_score = m_score | _reads_prompt(state, b_slot, m_prompt, b_prm_length, _PRM)
    drafts = tl.sum(tl.where(m_draft, 1, 0))
    targets = tl.sum(tl.where(m_target, 1, 0))
    scores = tl.sum(tl.where(m_score, 1, 0))
    draft_wait = tl.load(state.role_wait + _DRAFT)
    target_wait = tl.load(state.role_wait + _TARGET)
    prm_wait = tl.load(state.role_wait + _PRM)
    last = tl.load(state.last_role)
    draft_rank = _rank(drafts, draft_wait, last, _DRAFT, RULE)
    target_rank = _rank(targets, target_wait, last, _TARGET, RULE)
    prm_rank = _rank(scores, prm_wait, last, _PRM, RULE)
    num_free = tl.load(state.num_free)
    rows, seqs, places = drafts * 0, drafts * 0, drafts * 0
    chosen = drafts * 0 + _NUM_ROLES
    best = tl.maximum(tl.maximum(draft_rank, target_rank), prm_rank)
    while (best >= 0) & (seqs == 0):
        role = tl.where(best == prm_rank, _PRM, tl.where(best == target_rank, _TARGET, _DRAFT))
        prm_rank = tl.where(role == _PRM, -1, prm_rank)
        target_rank = tl.where(role == _TARGET, -1, target_rank)
        draft_rank = tl.where(role == _DRAFT, -1, draft_rank)
        m_ready = tl.where(role == _PRM, m_score, tl.where(role == _TARGET, m_target, m_draft))
        kv_role = tl.where(role == _PRM, PRM_KV, role)
        size = tl.where(
            kv_role == _PRM,
            tokens_per_page.prm,
            tl.where(kv_role == _TARGET, tokens_per_page.target, tokens_per_page.draft),
        )
        b_end = tl.where((role == _DRAFT) & m_guesses, b_guessed, b_length)
        b_end = tl.where(role == _PRM, b_prm_length, b_end)
        b_guesses = tl.where(role == _TARGET, b_guessed - b_length, 0)
        rows, seqs, places, num_free = pack(
            state, batch, role, kv_role, size, b_slot, m_ready, m_prompt, b_end, b_arrival,
            b_guesses, num_free, o_row, o_place,
        )  # fmt: skip
        chosen = tl.where(seqs > 0, role, chosen)
        best = tl.maximum(tl.maximum(draft_rank, target_rank), prm_rank)
    if seqs > 0:
        # `pack` has a barrier: every warp has read what the scalars below overwrite.
        tl.store(state.num_free, num_free)
        tl.store(state.num_rows, rows)
        tl.store(state.num_seqs, seqs)
        tl.store(state.num_places, places)
        tl.store(state.last_role, chosen)
        passed_draft, passed_target = chosen != _DRAFT, chosen != _TARGET
        tl.store(state.role_wait + _DRAFT, tl.where(passed_draft & (drafts > 0), draft_wait + 1, 0))
        tl.store(
            state.role_wait + _TARGET, tl.where(passed_target & (targets > 0), target_wait + 1, 0)
        )
        tl.store(state.role_wait + _PRM, tl.where((chosen != _PRM) & (scores > 0), prm_wait + 1, 0))
        pad(batch, rows, seqs, places, o_row, b_slot, o_place)
    return chosen, rows


@triton.jit
def schedule_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    tokens_per_page: tl.tuple,
    BLOCK_S: tl.constexpr,  # at least the slots
    BLOCK_N: tl.constexpr,  # at least the rows of a pass
    BLOCK_M: tl.constexpr,  # at least its places
    BLOCK_K: tl.constexpr,  # at least the buckets
    RULE: tl.constexpr,
    PRM_KV: tl.constexpr,  # the role whose K/V and pages the PRM's passes use
    CLOCK: tl.constexpr,  # false in the interpreter, which has no timer
) -> None:
    b_slot = tl.arange(0, BLOCK_S)
    m_slot = b_slot < state.num_slots
    tick = tl.load(state.tick) + 1
    begin_tick(state, tick, CLOCK)
    returns = _must_return(state, b_slot, m_slot, tick)
    tl.debug_barrier()
    tl.store(state.tick, tick)
    tl.store(state.ended + b_slot, b_slot * 0, mask=m_slot)
    role = tick * 0 + _NUM_ROLES
    rows = tick * 0
    if not returns:
        tl.store(state.lacks_pages + b_slot, b_slot * 0, mask=m_slot)
        tl.debug_barrier()
        o_row, o_place = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
        role, rows = _choose(
            state, batch, tokens_per_page, b_slot, m_slot, o_row, o_place, RULE, PRM_KV
        )
    o_bucket = tl.arange(0, BLOCK_K)
    m_bucket = o_bucket < state.num_buckets
    b_bucket = tl.load(state.row_buckets + o_bucket, mask=m_bucket, other=1 << 30)
    bucket = tl.sum(tl.where(m_bucket & (b_bucket < rows), 1, 0))
    tl.store(state.pass_role, role)
    tl.store(state.pass_body, role * state.num_buckets + bucket)
    tl.store(state.running, 0, mask=role == _NUM_ROLES)
    if CLOCK:
        tl.store(state.pass_start, globaltimer(), mask=role != _NUM_ROLES)
    if role == _NUM_ROLES:
        tl.store(state.num_rows, 0)
        tl.store(state.num_seqs, 0)
        tl.store(state.num_places, 0)
        o_row, o_place = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
        pad(batch, rows, rows, rows, o_row, b_slot, o_place)
        end_tick(state, CLOCK)


@triton.jit
def advance_kernel(
    state: tl.tuple,
    batch: tl.tuple,
    role: tl.tensor,
    kv_role: tl.tensor,
    BLOCK_S: tl.constexpr,
    CLOCK: tl.constexpr,
) -> None:
    b_seq = tl.arange(0, BLOCK_S)
    m_seq = (b_seq < batch.max_seqs) & (b_seq < tl.load(state.num_seqs))
    b_slot = tl.load(batch.seq_slot + b_seq, mask=m_seq, other=0)
    b_first = tl.load(batch.seq_start + b_seq, mask=m_seq, other=0)
    b_rows = tl.load(batch.seq_start + b_seq + 1, mask=m_seq, other=0) - b_first
    o_role = role * state.num_slots + b_slot
    b_kv = tl.load(batch.seq_kv_len + b_seq, mask=m_seq, other=0)
    b_read = tl.load(state.tokens_read + o_role, mask=m_seq, other=0) + b_rows
    b_passes = tl.load(state.passes + o_role, mask=m_seq, other=0) + 1
    b_time = tl.load(state.nanoseconds + o_role, mask=m_seq, other=0)
    if CLOCK:
        elapsed = globaltimer() - tl.load(state.pass_start)
        b_time += elapsed // tl.maximum(tl.load(state.num_seqs), 1)
    tl.debug_barrier()
    tl.store(state.kv_len + kv_role * state.num_slots + b_slot, b_kv, mask=m_seq)
    tl.store(state.tokens_read + o_role, b_read, mask=m_seq)
    tl.store(state.passes + o_role, b_passes, mask=m_seq)
    tl.store(state.nanoseconds + o_role, b_time, mask=m_seq)


def schedule(
    state: SlotState,
    batch: RowBatch,
    tokens_per_page: Sequence[int],
    rule: BatchingRule = BatchingRule.MOST_READY,
    prm_kv: Role = Role.PRM,
) -> None:
    """Writes the next pass into `batch`, or stops the loop; see the twin.

    Raises:
        ValueError: the state or the batch is not contiguous, not on one device that runs Triton, or
            too large.
    """
    check_state(state, batch)
    if state.num_slots > MAX_SLOTS:
        raise ValueError(f"the state has {state.num_slots} slots; allowed: at most {MAX_SLOTS}")
    if batch.num_seqs < state.num_slots:
        raise ValueError(
            f"batch has room for {batch.num_seqs} sequences; it must have room for "
            f"{state.num_slots}, one for each slot"
        )
    if batch.num_places < state.num_slots:
        raise ValueError(
            f"batch has room for {batch.num_places} places; it must have room for "
            f"{state.num_slots}, one for each slot"
        )
    schedule_launch(state, batch, tokens_per_page, rule, prm_kv).run()


def schedule_launch(
    state: SlotState,
    batch: RowBatch,
    tokens_per_page: Sequence[int],
    rule: BatchingRule,
    prm_kv: Role = Role.PRM,
) -> Launch:
    args = {
        "state": state_args(state),
        "batch": batch_args(batch),
        "tokens_per_page": page_sizes(tokens_per_page),
        "BLOCK_S": max(next_power_of_2(state.num_slots), 2),
        "BLOCK_N": next_power_of_2(batch.num_rows),
        "BLOCK_M": max(next_power_of_2(batch.num_places), 2),
        "BLOCK_K": next_power_of_2(state.row_buckets.shape[0]),
        "RULE": int(rule),
        "PRM_KV": int(prm_kv),
        "CLOCK": not interpreting(),
    }
    return Launch(
        schedule_kernel, (1,), args, num_warps=1 if batch.num_rows <= MAX_WARPS_ROWS else 4
    )


def advance(state: SlotState, batch: RowBatch, role: Role, prm_kv: Role = Role.PRM) -> None:
    """Moves the cursor of `role` over the rows its forward has just read.

    Raises:
        ValueError: `role` is not a role, or the state or batch is not contiguous or not on one
            device that runs Triton.
    """
    if not 0 <= role < NUM_ROLES:
        raise ValueError(f"role is {role}; it must be 0 to {NUM_ROLES - 1}")
    check_state(state, batch)
    advance_launch(state, batch, role, prm_kv).run()


def advance_launch(
    state: SlotState, batch: RowBatch, role: Role, prm_kv: Role = Role.PRM
) -> Launch:
    args = {
        "state": state_args(state),
        "batch": batch_args(batch),
        "role": int(role),
        "kv_role": int(kv_role(role, prm_kv)),
        "BLOCK_S": next_power_of_2(max(batch.num_seqs, 1)),
        "CLOCK": not interpreting(),
    }
    return Launch(advance_kernel, (1,), args, num_warps=1)
