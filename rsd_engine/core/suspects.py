"""Whose failure it is when an op fails, and slots that go on after it.

An op of a pass raises without saying for which of its slots. So the requests of the pass go on one
at a time, a tick a launch, until each has decided a step: the one that fails alone is the cause.
Where none does, the failure was a passing one, such as a moment without memory, and none is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rsd_engine.core.running import Running, RunningRequests
from rsd_kernels.state.enums import NUM_ROLES, Phase
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState


class Suspects:
    """Requests of a pass that failed, by generation, in the order in which they go on alone."""

    def __init__(self, slots: RunningRequests, state: SlotState, batch: RowBatch) -> None:
        self._slots = slots
        self._state = state
        self._batch = batch
        self._left: deque[int] = deque()

    def any_left(self) -> bool:
        """Whether one has yet to decide a step; those that have left their slots are let go."""
        running = {found.generation for found in self._slots if found}
        self._left = deque(generation for generation in self._left if generation in running)
        return bool(self._left)

    def accuse(self, active: Sequence[tuple[Running, int]]) -> None:
        """Suspects those of the active requests that were in the pass; all of them give way."""
        passed = set(_slots_of_pass(self._state, self._batch))
        for running, slot in active:
            if slot in passed:
                _restart_step(self._state, slot)
                if running.generation not in self._left:
                    self._left.append(running.generation)
            self._slots.preempt(slot, trusted=slot not in passed)

    def clear(self, generation: int) -> None:
        """It has decided a step."""
        if generation in self._left:
            self._left.remove(generation)

    def alone(self) -> int:
        """The slot, or the first of them, of the suspect that runs alone."""
        active = self._slots.where(active=True)
        return next(slot for found, slot in active if found.generation == self._left[0])

    def resume_next(self) -> None:
        """Only the next suspect runs, with the pool to itself."""
        for running, slot in self._slots.where(active=True):
            if running.generation != self._left[0]:
                self._slots.preempt(slot)
        for running, slot in self._slots.where(active=False):
            self._state.active[slot] = int(running.generation == self._left[0])


def _slots_of_pass(state: SlotState, batch: RowBatch) -> list[int]:
    """The slots of the pass that failed; all of them if there was none, but `schedule` itself."""
    if int(state.pass_role) == NUM_ROLES:
        return list(range(state.num_slots))
    return [int(slot) for slot in batch.seq_slot[: int(state.num_seqs)].tolist()]


def _restart_step(state: SlotState, slot: int) -> None:
    """Puts a slot back to its last kept step: nobody knows which ops of its pass have run.

    A step that was written to its end stays, if it is only to be scored. The same draws follow.
    """
    if int(state.phase[slot]) == Phase.GUESS:
        state.phase[slot] = Phase.TARGET
    if int(state.phase[slot]) not in (Phase.DRAFT, Phase.TARGET):
        return
    state.length[slot] = state.committed[slot]
    state.prm_length[slot] = state.prm_keep[slot] = state.prm_committed[slot]
    state.stop_state[slot] = state.stop_committed[slot]
    for column in (
        state.delimiter_state, state.match_bytes, state.finish, state.ended, state.guess_end,
        state.guess_stop, state.step_guesses,
    ):  # fmt: skip
        column[slot] = 0
