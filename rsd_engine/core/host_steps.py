"""Steps that wait for the host, which works by way of their text.

A step that has ended waits where its PRM has another tokenizer. A step that was kept waits where
the device cannot tell the tokens of its end.
"""

from __future__ import annotations

from collections.abc import Callable

from rsd_engine.core.failures import Failure
from rsd_kernels import ops
from rsd_kernels.state.enums import Finish, Phase
from rsd_kernels.state.slots import SlotState

HostBridge = Callable[[list[int], int, Finish], list[int]]
"""(step token ids, bytes of the delimiter that ended it, finish) -> the PRM's token ids."""

HostEnds = Callable[[list[int], int], tuple[int, list[int]]]
"""(context, where its last step begins) -> (begin, the tokens from `begin` on)."""


class HostSteps:
    """Serves slots in phase WAIT_HOST, between launches."""

    def __init__(
        self,
        tokens_per_page: tuple[int, int, int],
        text_bridge: HostBridge | None,
        text_ends: HostEnds | None,
    ) -> None:
        self._tokens_per_page = tokens_per_page
        self._text_bridge = text_bridge
        self._text_ends = text_ends

    def serve(self, state: SlotState, fail: Callable[[int, Failure], None]) -> bool:
        """Ends the steps that wait, and tells their records; whether there were any.

        `fail` ends the request of a slot whose step cannot be tokenised.
        """
        waiting = [s for s, p in enumerate(state.phase.tolist()) if p == Phase.WAIT_HOST]
        for slot in waiting:
            what = "bringing a step to the PRM"
            try:
                if int(state.length[slot]) > int(state.committed[slot]):
                    self._end_step(state, slot)
                else:
                    state.phase[slot] = Phase.DRAFT
                what = "tokenising the end of a step"
                if self._text_ends is not None and int(state.phase[slot]) == Phase.DRAFT:
                    self._settle_end(state, slot, self._text_ends)
            except Exception as error:
                fail(slot, Failure.caught("bridge", what, error))
        if waiting:
            int(state.log_head)  # host read: waits until the device has ended these steps
        return bool(waiting)

    def _end_step(self, state: SlotState, slot: int) -> None:
        assert self._text_bridge is not None
        first, last = int(state.committed[slot]), int(state.length[slot])
        step = state.tokens[slot, first:last].tolist()
        finish = Finish(int(state.finish[slot]))
        ids = self._text_bridge(step, int(state.match_bytes[slot]), finish)
        ops.write_prm_step(state, slot, ids)
        ops.end_slot_step(state, slot, self._tokens_per_page)

    def _settle_end(self, state: SlotState, slot: int, text_ends: HostEnds) -> None:
        context = state.tokens[slot, : int(state.length[slot])].tolist()
        begin, tokens = text_ends(context, int(state.kept_from[slot]))
        ops.replace_end(state, slot, begin, tokens)
