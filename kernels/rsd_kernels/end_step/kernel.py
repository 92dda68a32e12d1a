"""What becomes of an ended step: it goes to the PRM, is kept or dropped. Device functions.

A candidate goes to the PRM whoever wrote it, and then waits for its group.

keep:   committed = length, prm_committed = prm_length = prm_keep, stop_committed = stop_state
reject: length = committed, prm_length = prm_keep = prm_committed, stop_state = stop_committed;
        guess_end = the length as it was, if the request wants its rejected steps as guesses
both:   K/V cut to length and prm_length; where draft and target have contexts of their own, that of
        the other writer stays, and a rejected slot waits for the host
drop:   the output ends without the step; pages of an output that ends stay until the host takes
        them
part:   told = length; the step goes on, and nothing else changes

Twin: `rsd_kernels.end_step.twin`. One program deals with all slots, so the order of log records and
of freed pages is that of the lanes: slots in `write`, the sequences of the pass in `score`.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from rsd_kernels.end_step.decision import NAN_BITS, decide, wait_for_group
from rsd_kernels.launch import Launch
from rsd_kernels.rollback.kernel import truncate_lanes
from rsd_kernels.state.args import check_state, page_sizes, state_args, warps_for
from rsd_kernels.state.enums import (
    ConfidenceKind,
    Finish,
    GuessSource,
    Mode,
    Phase,
    RecordKind,
    Role,
    Speculation,
)
from rsd_kernels.state.slots import SlotState
from rsd_kernels.step_log.kernel import publish

KEPT = tl.constexpr(int(RecordKind.KEPT))
REJECTED = tl.constexpr(int(RecordKind.REJECTED))
_DROPPED = tl.constexpr(int(RecordKind.DROPPED))
_PART = tl.constexpr(int(RecordKind.PART))
DRAFT = tl.constexpr(int(Role.DRAFT))
_TARGET = tl.constexpr(int(Role.TARGET))
_PHASE_DRAFT = tl.constexpr(int(Phase.DRAFT))
_PHASE_SCORE = tl.constexpr(int(Phase.SCORE))
_PHASE_TARGET = tl.constexpr(int(Phase.TARGET))
_PHASE_WAIT_HOST = tl.constexpr(int(Phase.WAIT_HOST))
_PHASE_DONE = tl.constexpr(int(Phase.DONE))
_PHASE_CHOICE = tl.constexpr(int(Phase.CHOICE))
_MODE_RSD = tl.constexpr(int(Mode.RSD))
_MODE_TARGET = tl.constexpr(int(Mode.TARGET))
_FINISH_NONE = tl.constexpr(int(Finish.NONE))
_FINISH_STEPS = tl.constexpr(int(Finish.STEPS))
_FINISH_ERROR = tl.constexpr(int(Finish.ERROR))
_FINISH_PRM_FULL = tl.constexpr(int(Finish.PRM_FULL))
_GUESS_REJECTED = tl.constexpr(int(Speculation.REJECTED))
_BY_REJECTED = tl.constexpr(int(GuessSource.REJECTED))
_LOGPROB = tl.constexpr(int(ConfidenceKind.LOGPROB))
_ALL = tl.constexpr(2**31 - 1)  # tokens to keep of a context that stays as it is
STEP_CHUNK = 16  # words and pages a slot copies at a time; more would spill registers


@triton.jit
def transition(
    state: tl.tuple,
    b_slot: tl.tensor,  # [lanes] int32, a slot at most once
    m_lane: tl.tensor,  # [lanes] whose step is decided
    b_kind: tl.tensor,  # [lanes] kept, rejected, dropped or part
    b_source: tl.tensor,  # [lanes] the role that wrote the step
    b_reward_bits: tl.tensor,  # [lanes] its reward as it goes into the log
    tokens_per_page: tl.tuple,
    CHUNK: tl.constexpr,
) -> None:
    """Logs the step of every lane in `m_lane` and puts its slot into the next phase.

    A part is logged only.
    """
    b_first = tl.load(state.committed + b_slot, mask=m_lane, other=0)
    b_last = tl.load(state.length + b_slot, mask=m_lane, other=0)
    b_prm_first = tl.load(state.prm_committed + b_slot, mask=m_lane, other=0)
    b_prm_last = tl.load(state.prm_keep + b_slot, mask=m_lane, other=0)
    b_stop_first = tl.load(state.stop_committed + b_slot, mask=m_lane, other=0)
    b_stop_last = tl.load(state.stop_state + b_slot, mask=m_lane, other=0)
    b_steps = tl.load(state.num_steps + b_slot, mask=m_lane, other=0) + 1
    b_max_steps = tl.load(state.max_steps + b_slot, mask=m_lane, other=0)
    b_finish = tl.load(state.finish + b_slot, mask=m_lane, other=0)
    m_kept = m_lane & (b_kind == KEPT)
    m_rejected = m_lane & (b_kind == REJECTED)
    m_part = m_lane & (b_kind == _PART)
    b_finish = tl.where((b_finish == 0) & (b_steps >= b_max_steps), _FINISH_STEPS, b_finish)
    b_finish = tl.where(m_rejected | m_part, _FINISH_NONE, b_finish)
    # `publish` has a barrier: every warp has read the columns before one of them is overwritten.
    publish(state, m_lane, b_slot, b_kind, b_source, b_reward_bits, b_finish, CHUNK)
    tl.store(state.told + b_slot, b_last, mask=m_part)
    tl.store(state.num_steps + b_slot, b_steps, mask=m_kept)
    tl.store(state.committed + b_slot, b_last, mask=m_kept)
    tl.store(state.kept_from + b_slot, b_first, mask=m_kept)
    tl.store(state.prm_committed + b_slot, b_prm_last, mask=m_kept)
    tl.store(state.stop_committed + b_slot, b_stop_last, mask=m_kept)
    tl.store(state.length + b_slot, b_first, mask=m_rejected)
    b_prm = tl.where(m_rejected, b_prm_first, b_prm_last)
    tl.store(state.prm_length + b_slot, b_prm, mask=m_kept | m_rejected)
    tl.store(state.prm_keep + b_slot, b_prm, mask=m_rejected)
    tl.store(state.stop_state + b_slot, b_stop_first, mask=m_rejected)
    m_next = m_kept | m_rejected
    b_zero = b_slot * 0
    tl.store(state.delimiter_state + b_slot, b_zero, mask=m_next)
    tl.store(state.match_bytes + b_slot, b_zero, mask=m_next)
    tl.store(state.finish + b_slot, b_zero, mask=m_next)
    # These columns are not written here: loaded late, they take no registers meanwhile.
    b_separate = tl.load(state.separate_contexts + b_slot, mask=m_lane, other=0)
    b_speculation = tl.load(state.speculation + b_slot, mask=m_rejected, other=0)
    b_mode = tl.load(state.mode + b_slot, mask=m_lane, other=0)
    m_guessed = m_rejected & ((b_speculation & _GUESS_REJECTED) != 0)
    tl.store(state.guess_end + b_slot, tl.where(m_guessed, b_last, b_zero), mask=m_next)
    tl.store(state.guess_source + b_slot, b_zero + _BY_REJECTED, mask=m_guessed)
    tl.store(state.guess_stop + b_slot, b_zero, mask=m_next)
    tl.store(state.step_guesses + b_slot, b_zero, mask=m_next)
    b_candidates = tl.load(state.candidates + b_slot, mask=m_kept, other=0)
    m_forks = (b_candidates != 0) & (b_mode == _MODE_RSD)
    b_writer = tl.where(b_mode == _MODE_TARGET, _PHASE_TARGET, _PHASE_DRAFT)
    b_phase = tl.where(m_forks, _PHASE_CHOICE, b_writer)
    b_phase = tl.where(b_finish != 0, _PHASE_DONE, b_phase)
    b_rewriter = tl.where(b_separate != 0, _PHASE_WAIT_HOST, _PHASE_TARGET)
    b_phase = tl.where(m_rejected, b_rewriter, b_phase)
    tl.store(state.phase + b_slot, b_phase, mask=m_lane & ~m_part)
    b_keep = tl.where(m_rejected, b_first, b_last)
    truncate_lanes(
        state.kv_len, state.num_pages, state.page_table, state.free_pages, state.num_free,
        state.page_owners, b_slot, m_next,
        tl.where((b_separate != 0) & (b_source != DRAFT), _ALL, b_keep),
        tl.where((b_separate != 0) & (b_source != _TARGET), _ALL, b_keep),
        b_prm,
        tokens_per_page.draft, tokens_per_page.target, tokens_per_page.prm,
        state.num_slots, state.num_columns, 3,
    )  # fmt: skip


@triton.jit
def _streams(
    state: tl.tuple, b_slot: tl.tensor, m_lane: tl.tensor, b_phase: tl.tensor
) -> tl.tensor:
    """Whether each slot is writing a step that is told token by token, and has a new one."""
    b_streams = tl.load(state.stream_tokens + b_slot, mask=m_lane, other=0)
    b_told = tl.load(state.told + b_slot, mask=m_lane, other=0)
    b_told = tl.maximum(b_told, tl.load(state.committed + b_slot, mask=m_lane, other=0))
    b_length = tl.load(state.length + b_slot, mask=m_lane, other=0)
    m_writes = (b_phase == _PHASE_DRAFT) | (b_phase == _PHASE_TARGET)
    return (b_streams != 0) & (b_length > b_told) & m_writes


@triton.jit
def end_steps(
    state: tl.tuple,
    b_slot: tl.tensor,  # [lanes] int32, a slot at most once
    m_lane: tl.tensor,  # [lanes]
    tokens_per_page: tl.tuple,
    ONLY_ENDED: tl.constexpr,
    CONFIDENCE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Deals with the step of every lane in `m_lane`; of those whose step has ended, if ONLY_ENDED.

    Then steps that go on are told where the request streams them. Returns whether anything went
    into the log.
    """
    b_phase = tl.load(state.phase + b_slot, mask=m_lane, other=0)
    m_part = m_lane & (b_slot < 0)
    if ONLY_ENDED:
        b_ended = tl.load(state.ended + b_slot, mask=m_lane, other=0)
        m_part = m_lane & (b_ended == 0) & _streams(state, b_slot, m_lane, b_phase)
        m_lane = m_lane & (b_ended != 0) & (b_phase != _PHASE_WAIT_HOST)
    b_source = tl.load(state.step_source + b_slot, mask=m_lane | m_part, other=0)
    b_finish = tl.load(state.finish + b_slot, mask=m_lane, other=0)
    b_mode = tl.load(state.mode + b_slot, mask=m_lane, other=0)
    b_group = tl.load(state.group + b_slot, mask=m_lane, other=-1)
    m_candidate = b_group >= 0
    m_dropped = (b_finish == _FINISH_ERROR) | (b_finish == _FINISH_PRM_FULL)
    m_draft = m_lane & ~m_dropped & (b_source == DRAFT)
    # The step did not fit the PRM's context, and the request lets the target write from there on.
    m_again = m_draft & (b_mode == _MODE_TARGET)
    m_score = (m_draft | (m_candidate & ~m_dropped)) & (b_mode == _MODE_RSD)
    m_lost = m_candidate & ~m_score  # it can only be chosen where all are like it
    b_kind = tl.where(m_dropped, _DROPPED, tl.where(m_again, REJECTED, KEPT))
    b_kind = tl.where(m_part, _PART, b_kind)
    b_bits = b_slot * 0 + NAN_BITS
    if CONFIDENCE == 0:
        tl.debug_barrier()
        tl.store(state.phase + b_slot, b_slot * 0 + _PHASE_SCORE, mask=m_score)
        tl.store(state.reward + b_slot, b_slot * 0 - float("inf"), mask=m_lost)
        wait_for_group(state, b_slot, b_group, m_lost)
        m_lane = m_lane & ~m_score
    else:
        b_reward = tl.load(state.confidence + b_slot, mask=m_score, other=0.0)
        if CONFIDENCE == _LOGPROB:
            b_reward = tl.exp(b_reward)
        b_reward = tl.where(m_lost, -float("inf"), b_reward)
        m_accept, b_scored = decide(state, b_slot, m_score | m_lost, b_reward)
        wait_for_group(state, b_slot, b_group, m_candidate)
        b_kind = tl.where(m_score & ~m_accept, REJECTED, b_kind)
        b_bits = tl.where(m_score, b_scored, b_bits)
    m_lane = (m_lane & ~m_candidate) | m_part
    logs = tl.max(tl.where(m_lane, 1, 0)) != 0
    if logs:  # in most ticks nothing is decided
        transition(state, b_slot, m_lane, b_kind, b_source, b_bits, tokens_per_page, CHUNK)
    return logs


@triton.jit(do_not_specialize=["slot"])
def end_slot_step_kernel(
    state: tl.tuple,
    tokens_per_page: tl.tuple,
    slot: tl.tensor,
    CONFIDENCE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    b_lane = tl.arange(0, 2)
    end_steps(state, b_lane + slot, b_lane < 1, tokens_per_page, False, CONFIDENCE, CHUNK)


def end_slot_step(
    state: SlotState,
    slot: int,
    tokens_per_page: Sequence[int],
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> None:
    """Of a slot whose step the host has brought to the PRM's context, or has scored: see the twin.

    Raises:
        ValueError: `slot` is not a slot, or the state is not one the kernel can take.
    """
    if not 0 <= slot < state.num_slots:
        raise ValueError(f"slot is {slot}; it must be 0 to {state.num_slots - 1}")
    check_state(state)
    end_slot_step_launch(state, slot, tokens_per_page, confidence).run()


def end_slot_step_launch(
    state: SlotState,
    slot: int,
    tokens_per_page: Sequence[int],
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> Launch:
    args = {
        "state": state_args(state),
        "tokens_per_page": page_sizes(tokens_per_page),
        "slot": slot,
        "CONFIDENCE": int(confidence),
        "CHUNK": STEP_CHUNK,
    }
    return Launch(end_slot_step_kernel, (1,), args, num_warps=warps_for(1))
