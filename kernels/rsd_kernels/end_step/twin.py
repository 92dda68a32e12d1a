"""What becomes of an ended step: it goes to the PRM, is kept, rejected or dropped.

The transitions of a slot in Algorithm 1 of Liao et al., ICML 2025.
"""

from __future__ import annotations

import math

import numpy as np

from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.policy.formula import accept_probability
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.state.columns import add_at, host, number, write_at
from rsd_kernels.state.enums import (
    ConfidenceKind,
    Finish,
    GuessSource,
    Mode,
    Phase,
    Purpose,
    RecordKind,
    Role,
    Speculation,
)
from rsd_kernels.state.phases import next_writer_phase
from rsd_kernels.state.slots import SlotState
from rsd_kernels.step_log.twin import publish
from rsd_kernels.tick_clock.twin import end_tick

UNSCORED = math.nan


def end_step(
    state: SlotState,
    tokens_per_page: tuple[int, int, int],
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> None:
    """After a writer's pass: an ended draft step goes to the PRM, any other is kept unscored.

    confidence: by which a draft's step is decided at once, in place of a PRM.
    Of an unscored step that goes on, the new tokens are told where the request streams them.
    """
    streams = _streams(state)
    for b, ended in enumerate(host(state.ended).tolist()):
        if ended and number(state.phase, b) != Phase.WAIT_HOST:
            end_slot_step(state, b, tokens_per_page, confidence)
        elif not ended and streams[b]:
            _tell_part(state, b)
    end_tick(state)


def _streams(state: SlotState) -> list[bool]:
    """Whether each slot is writing a step that is told token by token, and has a new one."""
    asked = host(state.stream_tokens) != 0
    if not asked.any():
        return [False] * state.num_slots
    new = host(state.length) > np.maximum(host(state.committed), host(state.told))
    phase = host(state.phase)
    writes = (phase == Phase.DRAFT) | (phase == Phase.TARGET)
    return list((asked & new & writes).tolist())


def _tell_part(state: SlotState, b: int) -> None:
    source = number(state.step_source, b)
    publish(state, b, kind=RecordKind.PART, source=source, reward=UNSCORED, finish=Finish.NONE)
    write_at(state.told, b, host(state.length)[b])


def end_slot_step(
    state: SlotState,
    slot: int,
    tokens_per_page: tuple[int, int, int],
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> None:
    """The same for one slot whose step the host has brought to the PRM's context, or has scored."""
    role = number(state.step_source, slot)
    dropped = number(state.finish, slot) in (Finish.ERROR, Finish.PRM_FULL)
    is_candidate = number(state.group, slot) >= 0
    if is_candidate and (dropped or number(state.mode, slot) != Mode.RSD):
        _wait_for_group(state, slot, -math.inf)  # it can only be chosen where all are like it
    elif dropped:
        _drop(state, slot, role)
    elif is_candidate or (role == Role.DRAFT and number(state.mode, slot) == Mode.RSD):
        if confidence:
            mean = host(state.confidence)[slot]
            reward = np.exp(mean) if confidence == ConfidenceKind.LOGPROB else mean
            decide_step(state, slot, float(reward), tokens_per_page)
        else:
            write_at(state.phase, slot, Phase.SCORE)
    elif role == Role.DRAFT and number(state.mode, slot) == Mode.TARGET:
        # It did not fit the PRM's context, and the request lets the target write from there on.
        reject(state, slot, UNSCORED, tokens_per_page)
    else:
        keep(state, slot, role, UNSCORED, tokens_per_page)


def decide_step(
    state: SlotState, b: int, scored: float, tokens_per_page: tuple[int, int, int]
) -> None:
    """Accepts the draft's step with probability w(reward), else rejects it.

    A candidate is neither accepted nor rejected: the host chooses among its group.
    """
    if number(state.group, b) >= 0:
        _wait_for_group(state, b, scored)
        return
    reward = _note_reward(state, b, scored)
    if _accepts(state, b, reward):
        keep(state, b, Role.DRAFT, reward, tokens_per_page)
    else:
        reject(state, b, reward, tokens_per_page)


def _note_reward(state: SlotState, b: int, scored: float) -> float:
    write_at(state.reward, b, scored)
    reward = float(host(state.reward)[b])
    if math.isnan(reward):
        add_at(state.nan_rewards, b, 1)
    return reward


def _wait_for_group(state: SlotState, b: int, reward: float) -> None:
    """A candidate has its reward; the last of its group lets the host choose."""
    _note_reward(state, b, reward)
    group = number(state.group, b)
    add_at(state.group_left, group, -1)
    is_last = number(state.group_left, group) == 0
    write_at(state.phase, b, Phase.CHOICE if is_last else Phase.CANDIDATE)


def _accepts(state: SlotState, slot: int, reward: float) -> bool:
    probability = accept_probability(
        number(state.policy_kind, slot),
        float(host(state.policy_a)[slot]),
        float(host(state.policy_b)[slot]),
        reward,
    )
    key = DrawKey.of_slot(state, slot, number(state.length, slot), Purpose.ACCEPT)
    return uniform(key) < probability


def keep(
    state: SlotState, b: int, source: int, reward: float, tokens_per_page: tuple[int, int, int]
) -> None:
    """The step of slot b becomes part of the output.

    The pages of an output that ends stay until the host takes them.
    """
    num_steps = number(state.num_steps, b) + 1
    finish = number(state.finish, b)
    if finish == Finish.NONE and num_steps >= number(state.max_steps, b):
        finish = int(Finish.STEPS)
    publish(state, b, kind=RecordKind.KEPT, source=source, reward=reward, finish=finish)
    write_at(state.num_steps, b, num_steps)
    write_at(state.kept_from, b, host(state.committed)[b])
    write_at(state.committed, b, host(state.length)[b])
    for cursor in (state.prm_committed, state.prm_length):
        write_at(cursor, b, host(state.prm_keep)[b])
    write_at(state.stop_committed, b, host(state.stop_state)[b])
    _start_step(state, b)
    write_at(state.phase, b, Phase.DONE if finish else next_writer_phase(state, b))
    _truncate_to_cursors(state, b, source, tokens_per_page)


def reject(state: SlotState, b: int, reward: float, tokens_per_page: tuple[int, int, int]) -> None:
    """Slot b goes back to its last kept step, and the target writes this one.

    A target with a context of its own keeps what it has read of it, and waits for the host, which
    knows the slot by its step without tokens.
    """
    publish(
        state, b, kind=RecordKind.REJECTED, source=Role.DRAFT, reward=reward, finish=Finish.NONE
    )
    guessed = number(state.length, b)
    write_at(state.length, b, host(state.committed)[b])
    for cursor in (state.prm_length, state.prm_keep):
        write_at(cursor, b, host(state.prm_committed)[b])
    write_at(state.stop_state, b, host(state.stop_committed)[b])
    _start_step(state, b)
    if number(state.speculation, b) & Speculation.REJECTED:
        write_at(state.guess_end, b, guessed)
        write_at(state.guess_source, b, GuessSource.REJECTED)
    separate = number(state.separate_contexts, b)
    write_at(state.phase, b, Phase.WAIT_HOST if separate else Phase.TARGET)
    _truncate_to_cursors(state, b, Role.DRAFT, tokens_per_page)


def _truncate_to_cursors(
    state: SlotState, b: int, writer: int, tokens_per_page: tuple[int, int, int]
) -> None:
    """Cuts K/V to what is kept; that of another context than the writer's stays."""
    keep = [number(state.length, b)] * 2 + [number(state.prm_length, b)]
    if number(state.separate_contexts, b):
        other = Role.TARGET if writer == Role.DRAFT else Role.DRAFT
        keep[other] = number(state.kv_len, (other, b))
    draft, target, prm = keep
    truncate_kv(state, b, (draft, target, prm), tokens_per_page)


def _drop(state: SlotState, b: int, role: int) -> None:
    """Ends the output without the step."""
    finish = number(state.finish, b)
    publish(state, b, kind=RecordKind.DROPPED, source=role, reward=UNSCORED, finish=finish)
    write_at(state.phase, b, Phase.DONE)


def _start_step(state: SlotState, b: int) -> None:
    write_at(state.delimiter_state, b, 0)
    write_at(state.match_bytes, b, 0)
    write_at(state.finish, b, Finish.NONE)
    for column in (state.guess_end, state.guess_stop, state.step_guesses):
        write_at(column, b, 0)
