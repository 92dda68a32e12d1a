"""States as forks leave them: pages with several owners, candidates, prompts that are only read."""

from __future__ import annotations

import random
from collections import Counter

import torch

from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.state.enums import NUM_ROLES, Phase, Role
from rsd_kernels.state.slots import SlotState

PerPage = tuple[int, int, int]


def put_forks(
    state: SlotState, rng: random.Random, per_page: PerPage, prm_kv: Role = Role.PRM
) -> None:
    """Puts into a state of a run what a request with candidates brings.

    Some slots are forks of others, and K and V of some count only up to a page that others own
    too, as after a step whose end was tokenised again. prm_kv: as in `schedule`; a PRM without
    pages reads no prompts.
    """
    some_roles = [1, 2, 3] if prm_kv != Role.PRM else [*range(1 << NUM_ROLES)]
    for _ in range(rng.randint(0, 4)):
        fork_one(state, rng, per_page)
    for b in range(state.num_slots):
        if rng.random() < 0.3:
            state.candidates[b] = rng.choice([0, 2, 4])
        if rng.random() < 0.5:
            state.group[b] = rng.randrange(2)
        if rng.random() < 0.3:
            role = rng.randrange(NUM_ROLES)
            state.kv_len[role, b] = rng.randint(0, int(state.kv_len[role, b]))
        if rng.random() < 0.1:
            state.phase[b] = Phase.PROMPT
            state.prompt_roles[b] = rng.choice(some_roles)
    for group in range(2):
        state.group_left[group] = rng.randint(1, 3)


def fork_one(state: SlotState, rng: random.Random, per_page: PerPage) -> None:
    """Makes a random slot a copy of another one that holds pages."""
    holding = state.num_pages.sum(dim=0).nonzero().flatten().tolist()
    if not holding:
        return
    source = rng.choice(holding)
    target = rng.choice([b for b in range(state.num_slots) if b != source])
    truncate_kv(state, target, (0, 0, 0), per_page)
    pages = torch.zeros(state.free_pages.shape[0], 1, dtype=torch.uint8)
    fork_twin.fork(state, pages, source, [target], per_page)


def happened(before: SlotState, after: SlotState) -> Counter[str]:
    """What an op did that needs such a state."""
    fewer = after.page_owners < before.page_owners
    phases = after.phase[after.phase != before.phase].tolist()
    read = (after.kv_len > before.kv_len).any(dim=0)
    return Counter(
        {
            "gave up a shared page": int((fewer & (after.page_owners > 0)).sum()),
            "freed a page": int((fewer & (after.page_owners == 0)).sum()),
            "read a prompt": int((read & (after.phase == Phase.PROMPT)).sum()),
            "waits for its group": phases.count(Phase.CANDIDATE),
            "can be chosen": phases.count(Phase.CHOICE),
            "ended": phases.count(Phase.DONE),
        }
    )
