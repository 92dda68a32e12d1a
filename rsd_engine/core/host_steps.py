"""Steps that wait for the host, since they reach a model with another tokenizer through text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rsd_engine.core.events import Event, nothing_written
from rsd_engine.core.failures import Failure
from rsd_engine.core.running import RunningRequests
from rsd_engine.loop.rsd import Loop
from rsd_kernels import ops
from rsd_kernels.state.enums import Finish, Phase, Role
from rsd_kernels.state.slots import SlotState

HostBridge = Callable[[list[int], int, Finish, bool], list[int]]
"""(ids of a step, bytes of the delimiter that ended it, finish, is it the first) -> the PRM's ids.
"""


class HostSteps:
    """Serves slots in phase WAIT_HOST, between launches.

    Args:
        slots: the requests.
        loop: whose slots they are in.
        text_bridges: for each writer, how its steps reach the PRM; empty if the device bridges.
    """

    def __init__(
        self,
        slots: RunningRequests,
        loop: Loop,
        text_bridges: Mapping[Role, HostBridge],
    ) -> None:
        self._slots = slots
        self._tables = loop.tables
        self._tokens_per_page = loop.tokens_per_page
        self._text_bridges = text_bridges

    def serve(
        self, state: SlotState, collect: Callable[[], None], tell: Callable[[Event], None]
    ) -> bool:
        """Does what slots wait for the host to do; whether there were any.

        Args:
            state: at rest.
            collect: takes the records of the steps that have ended.
            tell: takes the events of requests that end here, with an error or a full context.
        """
        ended, rejected = _waiting_slots(state)
        for slot in ended:
            try:
                self._end_step(state, slot)
            except Exception as error:
                failure = Failure.caught("bridge", "bringing a step to the PRM", error)
                tell(self._slots.fail(slot, failure))
        if ended:
            int(state.log_head)  # host read: waits until the device has ended these steps
            collect()
        for slot in rejected:
            self._give_to(state, slot, Role.TARGET, tell)
        for slot in ended:
            contexts = self._slots.contexts_of(slot)
            if contexts and contexts.writer == Role.TARGET:
                self._give_to(state, slot, Role.DRAFT, tell)
        return bool(ended or rejected)

    def _end_step(self, state: SlotState, slot: int) -> None:
        first, last = int(state.committed[slot]), int(state.length[slot])
        step = state.tokens[slot, first:last].tolist()
        finish = Finish(int(state.finish[slot]))
        writer, is_first = Role(int(state.step_source[slot])), not int(state.num_steps[slot])
        bridge = self._text_bridges[writer]
        ids = bridge(step, int(state.match_bytes[slot]), finish, is_first)
        ops.write_prm_step(state, slot, ids, self._tables[writer])
        ops.end_slot_step(state, slot, self._tokens_per_page)

    def _give_to(
        self, state: SlotState, slot: int, writer: Role, tell: Callable[[Event], None]
    ) -> None:
        """Puts a writer's context into a slot; the output ends if that is full."""
        running = self._slots[slot]
        assert running is not None and running.contexts is not None
        try:
            entered = running.contexts.enter(state, slot, writer)
        except Exception as error:
            failure = Failure.caught("bridge", "bringing the steps to the other writer", error)
            tell(self._slots.fail(slot, failure))
            return
        if entered:
            return
        self._slots.release(slot)
        tell(nothing_written(running.key, writer))
        tell(self._slots.leave(slot, Finish.LENGTH))


def _waiting_slots(state: SlotState) -> tuple[list[int], list[int]]:
    """The slots that wait for the host: with an ended step, and, without tokens, for the target.

    A step never has no tokens; a rejected one has been rolled back.
    """
    waiting = [s for s, p in enumerate(state.phase.tolist()) if p == Phase.WAIT_HOST]
    if not waiting:
        return [], []
    first, last = state.committed.tolist(), state.length.tolist()
    ended = [slot for slot in waiting if first[slot] < last[slot]]
    return ended, [slot for slot in waiting if slot not in ended]
