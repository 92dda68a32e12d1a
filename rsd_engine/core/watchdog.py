"""Reports which slots are stuck, and in which phase, when a launch makes no progress."""

from __future__ import annotations

import logging
import time

from rsd_kernels.state.enums import NUM_ROLES, Phase, Role
from rsd_kernels.state.slots import SlotState

logger = logging.getLogger("rsd_engine")

PATIENCE_SECONDS = 20.0


class Watchdog:
    """Looks at the tick of a running launch now and then.

    A pass never takes long, so a tick that does not change means that a kernel hangs. Only the end
    of the process stops it: the watchdog reports, and the user decides.

    Args:
        state: read by copies that do not wait for the launch.
        patience: seconds without a tick before the report.
    """

    def __init__(self, state: SlotState, *, patience: float = PATIENCE_SECONDS) -> None:
        self._state = state
        self._patience = patience
        self._tick = -1
        self._since = 0.0

    def start(self) -> None:
        """Call it when a launch begins."""
        self._tick, self._since = -1, time.monotonic()

    def look(self) -> None:
        """Call it while waiting; it costs nothing until `patience` is over, then one small copy."""
        if time.monotonic() - self._since < self._patience:
            return
        tick, self._since = int(self._state.tick), time.monotonic()
        if tick == self._tick:
            logger.error("%s", self._report(tick))
        self._tick = tick

    def _report(self, tick: int) -> str:
        role = int(self._state.pass_role)
        name = Role(role).name.lower() if role < NUM_ROLES else "no"
        phases = self._state.phase.tolist()
        slots = ", ".join(
            f"slot {slot} in {Phase(phase).name}"
            for slot, phase in enumerate(phases)
            if phase != Phase.FREE
        )
        return (
            f"the loop has made no tick for {self._patience:.0f} s: it hangs in tick {tick}, "
            f"in a pass of {name} model over {int(self._state.num_rows)} rows; {slots}"
        )
