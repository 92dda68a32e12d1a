"""Steps that wait for the host, which works by way of their text.

A step that has ended waits where it must reach a model with another tokenizer. A step that was kept
waits where the device cannot tell the tokens of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rsd_engine.core.events import Event, nothing_written
from rsd_engine.core.failures import Failure
from rsd_engine.core.running import RunningRequests
from rsd_engine.loop.rsd import Loop
from rsd_kernels import ops
from rsd_kernels.state.enums import Finish, Mode, Phase, Role
from rsd_kernels.state.phases import next_writer_phase
from rsd_kernels.state.slots import SlotState

HostBridge = Callable[[list[int], int, Finish, bool], list[int]]
"""(ids of a step, bytes of the delimiter that ended it, finish, is it the first) -> the PRM's ids.
"""

HostEnds = Callable[[list[int], int], tuple[int, list[int]]]
"""(context, where its last step begins) -> (begin, the tokens from `begin` on)."""


class HostSteps:
    """Serves slots in phase WAIT_HOST, between launches.

    Args:
        slots: the requests.
        loop: that they belong to.
        text_bridges: for each writer, how its steps reach the PRM; empty if the device bridges.
        text_ends: finds the tokens of a kept step's end; None if ends stay as they were written.
    """

    def __init__(
        self,
        slots: RunningRequests,
        loop: Loop,
        text_bridges: Mapping[Role, HostBridge],
        text_ends: HostEnds | None,
    ) -> None:
        self._slots = slots
        self._tables = loop.tables
        self._tokens_per_page = loop.tokens_per_page
        self._text_bridges = text_bridges
        self._text_ends = text_ends

    def serve(
        self,
        state: SlotState,
        collect: Callable[[], None],
        tell: Callable[[Event], None],
        scored: Sequence[int] = (),
    ) -> bool:
        """Does what slots wait for the host to do; whether there were any.

        Args:
            state: at rest.
            collect: takes the records of the steps that have ended.
            tell: takes the events of requests that end here, with an error or a full context.
            scored: slots whose step a server's reward has decided, and that do not wait.
        """
        waiting = _waiting_slots(state)
        ended = [slot for slot in waiting if int(state.committed[slot]) < int(state.length[slot])]
        for slot in ended:
            try:
                self._end_step(state, slot)
            except Exception as error:
                failure = Failure.caught("bridge", "bringing a step to the PRM", error)
                tell(self._slots.fail(slot, failure))
        if ended:
            int(state.log_head)  # host read: waits until the device has ended these steps
            collect()
        decided = [slot for slot in _waiting_slots(state) if self._slots[slot]]
        for slot in decided:
            if self._text_ends is not None and int(state.kept_from[slot]) >= 0:
                state.phase[slot] = next_writer_phase(state, slot)
            elif self._slots.contexts_of(slot):
                self._give_to(state, slot, Role.TARGET, tell)
            else:
                state.phase[slot] = Phase.TARGET  # for a server
        for slot in ended:
            contexts = self._slots.contexts_of(slot)
            goes_on = int(state.mode[slot]) == Mode.TARGET  # the PRM's context is full
            if contexts and contexts.writer == Role.TARGET and not goes_on:
                self._give_to(state, slot, Role.DRAFT, tell)
        if self._text_ends is not None:
            for slot in [*ended, *decided, *scored]:
                self._settle_end(state, slot, self._text_ends, tell)
        return bool(waiting)

    def _end_step(self, state: SlotState, slot: int) -> None:
        first, last = int(state.committed[slot]), int(state.length[slot])
        step = state.tokens[slot, first:last].tolist()
        finish = Finish(int(state.finish[slot]))
        source, is_first = Role(int(state.step_source[slot])), not int(state.num_steps[slot])
        if int(state.mode[slot]) == Mode.RSD and self._text_bridges:  # it has a PRM
            bridge = self._text_bridges[source]
            ids = bridge(step, int(state.match_bytes[slot]), finish, is_first)
            ops.write_prm_step(state, slot, ids, self._tables[source])
        ops.end_slot_step(state, slot, self._tokens_per_page)

    def _settle_end(
        self, state: SlotState, slot: int, text_ends: HostEnds, tell: Callable[[Event], None]
    ) -> None:
        """Gives the end of a step the tokens of its text, if it was kept and the output goes on."""
        first = int(state.kept_from[slot])
        begins = int(state.phase[slot]) in (Phase.DRAFT, Phase.CHOICE)
        if not begins or int(state.mode[slot]) != Mode.RSD or first < 0:
            return
        context = state.tokens[slot, : int(state.length[slot])].tolist()
        try:
            begin, tokens = text_ends(context, first)
        except Exception as error:
            failure = Failure.caught("bridge", "tokenising the end of a step", error)
            tell(self._slots.fail(slot, failure))
            return
        ops.replace_end(state, slot, begin, tokens)

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
        tell(nothing_written(running.key, writer))
        tell(self._slots.leave(slot, Finish.LENGTH))


def _waiting_slots(state: SlotState) -> list[int]:
    """The slots that wait for the host: with an ended step, and with none, since it is decided.

    A step never has no tokens. A kept one waits for its end, if the writers share a vocabulary; a
    rejected one was rolled back and waits for the target, if that has another one or a server.
    """
    return [slot for slot, phase in enumerate(state.phase.tolist()) if phase == Phase.WAIT_HOST]
