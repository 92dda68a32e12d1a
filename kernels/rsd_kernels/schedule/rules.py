"""What `schedule` goes by: the order in which it tries the roles, and whose K/V a pass uses."""

from __future__ import annotations

from enum import IntEnum

from rsd_kernels.state.enums import Role

STARVED_AFTER = 16  # ticks for which a role may be passed over
# The same in lock-step, where the others normally wait for as long as the longest step. Only a
# request that never leaves its phase (one model alone) makes them wait this long.
LONGEST_PHASE = 1024


class BatchingRule(IntEnum):
    """Which role runs the next pass: `schedule` tries the roles in the order of the rule."""

    MOST_READY = 0  # most ready slots; scoring counts double
    EVERY_ROLE = 1  # the roles take turns: draft, PRM, target
    LOCK_STEP = 2  # the same turns, but a role stays until no slot waits for it


def kv_role(role: Role, prm_kv: Role) -> Role:
    """Whose K/V and pages the passes of a role use: `prm_kv` for the PRM, for others its own."""
    return prm_kv if role == Role.PRM else role
