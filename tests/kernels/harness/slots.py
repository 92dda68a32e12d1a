"""Slots with requests in them, for tests of single loop ops."""

from __future__ import annotations

import torch

from rsd_engine.core.slots import fill_slot
from rsd_kernels.state.enums import Phase, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.slots import SlotSizes, SlotState, pages_for
from tests.loop.toy import toy_request

PER_PAGE = (3, 2, 5)
CPU = torch.device("cpu")


def make_state(num_slots: int = 4, num_pages: int = 200, log_words: int = 4000) -> SlotState:
    sizes = SlotSizes(
        num_slots=num_slots,
        max_len=100,
        prm_max_len=200,
        pages_per_role=100,
        num_pages=num_pages,
        log_words=log_words,
    )
    state = SlotState.allocate(sizes, CPU)
    state.tick_cap.fill_(64)
    return state


def fill(
    state: SlotState, slot: int, length: int, phase: Phase, read: int = 0, arrival: int = 0
) -> None:
    """A request of `length` tokens in a phase; its role has read `read` of them."""
    prompt = "abcdefghij" * 10
    request = toy_request(prompt[:length], max_tokens=100 - length)
    fill_slot(state, slot, request, generation=slot + 1, arrival=arrival or slot + 1)
    state.phase[slot] = phase
    role = {Phase.DRAFT: Role.DRAFT, Phase.TARGET: Role.TARGET, Phase.SCORE: Role.PRM}[phase]
    take_pages(state, role, slot, pages_for(read, PER_PAGE[role]))
    state.kv_len[role, slot] = read
