"""Failures that belong to one request: what is told of them, and whose an op's failure is.

An op of a pass raises without saying for which of its slots. So the requests of the pass go on one
at a time, a tick a launch, until each has decided a step: the one that fails alone is the cause.
Where none does, the failure was a passing one, such as a moment without memory, and none is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from rsd_engine.outputs import ErrorKind
from rsd_kernels.state.enums import NUM_ROLES, Phase
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState

_MOST_SHOWN = 500  # characters of an error


@dataclass(frozen=True)
class Failure:
    """Why a request ended with an error."""

    kind: ErrorKind
    message: str

    @classmethod
    def of(cls, kind: ErrorKind, what: str, error: BaseException) -> Failure:
        """`error` in one line, after `what` failed."""
        said = " ".join(str(error).split())[:_MOST_SHOWN]
        name = type(error).__name__
        return cls(kind, f"{what} failed: {name}: {said}" if said else f"{what} failed: {name}")


class Suspects:
    """Requests of a pass that failed, by generation, in the order in which they go on alone."""

    def __init__(self) -> None:
        self._left: deque[int] = deque()

    def __bool__(self) -> bool:
        return bool(self._left)

    def accuse(self, generations: Iterable[int]) -> None:
        """Replaces those that are left."""
        self._left = deque(generations)

    def clear(self, generation: int) -> None:
        """It has decided a step, or is gone."""
        if generation in self._left:
            self._left.remove(generation)

    def is_next(self, generation: int) -> bool:
        """Whether it is the one that may run."""
        return bool(self._left) and self._left[0] == generation


def slots_of_pass(state: SlotState, batch: RowBatch) -> list[int]:
    """The slots of the pass that failed; all of them if there was none, but `schedule` itself."""
    if int(state.pass_role) == NUM_ROLES:
        return list(range(state.num_slots))
    return [int(slot) for slot in batch.seq_slot[: int(state.num_seqs)].tolist()]


def restart_step(state: SlotState, slot: int) -> None:
    """Puts a slot back to its last kept step: nobody knows which ops of its pass have run.

    A step that was written to its end stays, if it is only to be scored. The same draws follow.
    """
    if int(state.phase[slot]) not in (Phase.DRAFT, Phase.TARGET):
        return
    state.length[slot] = state.committed[slot]
    state.prm_length[slot] = state.prm_committed[slot]
    state.stop_state[slot] = state.stop_committed[slot]
    for column in (state.delimiter_state, state.match_bytes, state.finish, state.ended):
        column[slot] = 0
