"""Steps that wait for the host, since they reach a model with another tokenizer through text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rsd_engine.core.writer_contexts import WriterContexts
from rsd_kernels import ops
from rsd_kernels.state.enums import Finish, Phase, Role
from rsd_kernels.state.slots import SlotState

HostBridge = Callable[[list[int], int, Finish], list[int]]
"""(step token ids, bytes of the delimiter that ended it, finish) -> the PRM's token ids."""


class HostSteps:
    """Serves slots in phase WAIT_HOST, between launches.

    Args:
        tokens_per_page: by role.
        text_bridges: for each writer, how its steps reach the PRM; empty if the device bridges.
    """

    def __init__(
        self, tokens_per_page: tuple[int, int, int], text_bridges: Mapping[Role, HostBridge]
    ) -> None:
        self._tokens_per_page = tokens_per_page
        self._text_bridges = text_bridges

    def serve(
        self,
        state: SlotState,
        contexts_of: Callable[[int], WriterContexts | None],
        collect: Callable[[], None],
    ) -> tuple[bool, list[tuple[int, Role]]]:
        """Ends the steps that wait, and gives slots to the writers whose turn it is.

        Args:
            state: of the slots.
            contexts_of: those of the request in a slot, if its writers have one each.
            collect: tells the records in the log, and the contexts of the steps in them.

        Returns:
            Whether any slot waited, and the slots whose next writer has no room in its context.
        """
        ended, rejected = _waiting(state)
        for slot in ended:
            self._end_step(state, slot)
        if ended:
            int(state.log_head)  # host read: waits until the device has ended these steps
            collect()
        turns = [(slot, Role.TARGET) for slot in rejected]
        turns += [(slot, Role.DRAFT) for slot in ended]
        full = list[tuple[int, Role]]()
        for slot, writer in turns:
            contexts = contexts_of(slot)
            if contexts and contexts.writer != writer and not contexts.enter(state, slot, writer):
                full.append((slot, writer))
        return bool(turns), full

    def _end_step(self, state: SlotState, slot: int) -> None:
        first, last = int(state.committed[slot]), int(state.length[slot])
        step = state.tokens[slot, first:last].tolist()
        finish = Finish(int(state.finish[slot]))
        bridge = self._text_bridges[Role(int(state.step_source[slot]))]
        ops.write_prm_step(state, slot, bridge(step, int(state.match_bytes[slot]), finish))
        ops.end_slot_step(state, slot, self._tokens_per_page)


def _waiting(state: SlotState) -> tuple[list[int], list[int]]:
    """The slots that wait for the host: with an ended step, and, without tokens, for the target.

    A step never has no tokens; a rejected one has been rolled back.
    """
    waiting = [s for s, p in enumerate(state.phase.tolist()) if p == Phase.WAIT_HOST]
    if not waiting:
        return [], []
    first, last = state.committed.tolist(), state.length.tolist()
    ended = [slot for slot in waiting if first[slot] < last[slot]]
    return ended, [slot for slot in waiting if slot not in ended]
