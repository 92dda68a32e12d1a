"""What a slot waits for, where that takes more than its phase."""

from __future__ import annotations

from rsd_kernels.state.columns import number
from rsd_kernels.state.enums import Mode, Phase, Role
from rsd_kernels.state.slots import SlotState


def has_read_prompt(state: SlotState, b: int) -> bool:
    """Whether an active slot in phase PROMPT has nothing left to read."""
    return bool(number(state.active, b)) and not any(reads_prompt(state, b, r) for r in Role)


def reads_prompt(state: SlotState, b: int, role: Role) -> bool:
    """Whether a role has yet to read the prompt of a slot in phase PROMPT.

    Of a writer's prompt the last token stays: it samples from there.
    """
    if not number(state.prompt_roles, b) & 1 << role:
        return False
    end = number(state.prm_length, b) if role == Role.PRM else number(state.length, b) - 1
    return number(state.kv_len, (role, b)) < end


def next_writer_phase(state: SlotState, b: int) -> Phase:
    """Of a slot that begins a step: who writes it, or that the host forks it first."""
    if number(state.mode, b) == Mode.TARGET:
        return Phase.TARGET
    forks = number(state.candidates, b) and number(state.mode, b) == Mode.RSD
    return Phase.CHOICE if forks else Phase.DRAFT
