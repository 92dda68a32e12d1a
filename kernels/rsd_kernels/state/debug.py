"""RSD_DEBUG_KERNELS=1: before every launch, check the values that the kernels of loop ops trust.

This waits for the device, so it cannot run while a graph is captured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.state.enums import NUM_GUESS_SOURCES, RATE_ONE, Phase, Role
from rsd_kernels.state.slots import SlotState


def check_values(state: SlotState) -> None:
    """Raises ValueError if a cursor or a guess is past its context, or a page is not in the pool.

    Of a slot whose writers have contexts of their own, one is not in the state; any may be full.
    """
    separate, full = state.separate_contexts.cpu() != 0, state.tokens.shape[1]
    for role, longest in longest_kv(state).items():
        context = longest.cpu()
        if role != Role.PRM:
            context = context.masked_fill(separate, full)
        _check_range(f"kv_len[{role.name}]", state.kv_len[role].cpu(), context.tolist())
    capacities = {"length": state.tokens.shape[1], "prm_length": state.prm_tokens.shape[1]}
    for name, most in capacities.items():
        _check_range(name, getattr(state, name).cpu(), [most] * state.num_slots)
        committed = "committed" if name == "length" else "prm_committed"
        _check_range(committed, getattr(state, committed).cpu(), getattr(state, name).tolist())
    for name, most in {
        "guess_end": full, "guess_stop": full, "guess_source": NUM_GUESS_SOURCES - 1,
        "guess_rate": RATE_ONE,
    }.items():  # fmt: skip
        _check_range(name, getattr(state, name).cpu(), [most] * state.num_slots)
    _check_range("prm_keep", state.prm_keep.cpu(), state.prm_length.tolist())
    _check_range("log_head", state.log_head.cpu(), [state.log.shape[0]])
    check_pages(state.num_pages, state.page_table, state.free_pages, state.num_free)


def longest_kv(state: SlotState) -> dict[Role, Tensor]:
    """[B] the most tokens whose K and V each role may hold.

    A writer that scores its own context holds those of the PRM's until the step is decided. Guesses
    count.
    """
    undecided = torch.zeros_like(state.phase, dtype=torch.bool)
    for phase in (Phase.SCORE, Phase.CANDIDATE, Phase.CHOICE):
        undecided |= state.phase == phase
    scores = undecided & (state.kv_len[Role.PRM] == 0)
    writers = state.length.maximum(state.prm_length * scores).maximum(state.guess_end)
    return {Role.DRAFT: writers, Role.TARGET: writers, Role.PRM: state.prm_length}


def check_pages(
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32
    num_free: Tensor,  # [1] int32
) -> None:
    """Raises ValueError if a held or free page is not one of the pool's N."""
    pool = free_pages.shape[0]
    table, held = page_table.cpu(), num_pages.cpu()
    for role in range(table.shape[0]):
        columns = [table.shape[2]] * table.shape[1]
        _check_range(f"num_pages[{role}]", held[role], columns)
        for slot, count in enumerate(held[role].tolist()):
            where = f"page_table[{role}, {slot}]"
            _check_range(where, table[role, slot, :count], [pool - 1] * count)
    _check_range("num_free", num_free.cpu(), [pool])
    free = int(num_free)
    _check_range("free_pages", free_pages.cpu()[:free], [pool - 1] * free)


def _check_range(name: str, values: Tensor, most: list[int]) -> None:
    for i, (value, limit) in enumerate(zip(values.tolist(), most, strict=True)):
        if not 0 <= value <= limit:
            raise ValueError(f"{name}[{i}] is {value}; allowed: 0 to {limit}")
