"""Steps that wait for the host: their PRM has another tokenizer, so they reach it through text."""

from __future__ import annotations

from collections.abc import Callable

from rsd_engine.core.failures import Failure
from rsd_kernels import ops
from rsd_kernels.state.enums import Finish, Phase
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables

HostBridge = Callable[[list[int], int, Finish, bool], list[int]]
"""(ids of a step, bytes of the delimiter that ended it, finish, is it the first) -> the PRM's ids.
"""


class HostSteps:
    """Serves slots in phase WAIT_HOST, between launches."""

    def __init__(
        self,
        tables: StepTables,
        tokens_per_page: tuple[int, int, int],
        text_bridge: HostBridge | None,
    ) -> None:
        self._tables = tables
        self._tokens_per_page = tokens_per_page
        self._text_bridge = text_bridge

    def serve(self, state: SlotState, fail: Callable[[int, Failure], None]) -> bool:
        """Ends the steps that wait, and tells their records; whether there were any.

        `fail` ends the request of a slot whose step cannot be brought to the PRM.
        """
        waiting = [s for s, p in enumerate(state.phase.tolist()) if p == Phase.WAIT_HOST]
        for slot in waiting:
            try:
                self._end_step(state, slot)
            except Exception as error:
                fail(slot, Failure.caught("bridge", "bringing a step to the PRM", error))
        if waiting:
            int(state.log_head)  # host read: waits until the device has ended these steps
        return bool(waiting)

    def _end_step(self, state: SlotState, slot: int) -> None:
        assert self._text_bridge is not None
        first, last = int(state.committed[slot]), int(state.length[slot])
        step = state.tokens[slot, first:last].tolist()
        finish = Finish(int(state.finish[slot]))
        is_first = not int(state.num_steps[slot])
        ids = self._text_bridge(step, int(state.match_bytes[slot]), finish, is_first)
        ops.write_prm_step(state, slot, ids, self._tables)
        ops.end_slot_step(state, slot, self._tokens_per_page)
