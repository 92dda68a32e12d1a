"""States in which slots share pages, read prompts, or write candidates for a step."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from rsd_engine.core.slots import fill_slot
from rsd_kernels.fork.twin import fork
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.schedule.twin import take_pages
from rsd_kernels.state.enums import NUM_ROLES, Finish, Mode, Phase, Role
from rsd_kernels.state.slots import SlotState, pages_for
from tests.kernels.harness.slots import PER_PAGE, make_state
from tests.loop.toy import toy_request

NUM_SLOTS = 8
PAGE_BYTES = 70
_OFTEN = (Phase.DRAFT, Phase.TARGET, Phase.SCORE)
_RUNNING = (*_OFTEN, *_OFTEN, *_OFTEN, Phase.PROMPT, Phase.CANDIDATE)
_RARE = (Phase.FREE, Phase.WAIT_HOST, Phase.DONE, Phase.CHOICE)


def random_pages(state: SlotState, rng: random.Random) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    size = (state.free_pages.shape[0], PAGE_BYTES)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def fill(state: SlotState, slot: int, rng: random.Random) -> None:
    """A request in the middle of a step, of which every role has read something."""
    prompt = "".join(rng.choice("abcdef") for _ in range(rng.randint(1, 20)))
    request = toy_request(
        prompt, max_tokens=30, max_steps=rng.choice([1, 9]), seed=rng.randrange(2**63),
        num_logprobs=rng.choice([-1, 0, 2]),
        policy=(rng.choice([*PolicyKind]), rng.random(), rng.random()),
    )  # fmt: skip
    fill_slot(state, slot, request, generation=slot + 1, arrival=rng.randrange(100))
    for length, committed in ((state.length, state.committed), (state.prm_length, state.prm_keep)):
        length[slot] += rng.randint(0, 12)
        committed[slot] += rng.randint(0, int(length[slot] - committed[slot]))
    for columns in (state.tokens[slot], state.prm_tokens[slot], state.token_rank[slot]):
        columns.random_(0, 9, generator=torch.Generator().manual_seed(slot))
    for role in Role:
        context = state.prm_length if role == Role.PRM else state.length
        state.kv_len[role, slot] = read = rng.randint(0, int(context[slot]))
        held = pages_for(read, PER_PAGE[role]) + rng.choice([0, 0, 1])  # a step was made shorter
        take_pages(state, role, slot, min(held, int(state.num_free)))
        if int(state.num_pages[role, slot]) < pages_for(read, PER_PAGE[role]):
            state.kv_len[role, slot] = int(state.num_pages[role, slot]) * PER_PAGE[role]


def shared_state(rng: random.Random, num_pages: int = 90) -> SlotState:
    """Half of the slots are forks of others; some go on inside a page that others own."""
    state = make_state(NUM_SLOTS, num_pages)
    sources = range(NUM_SLOTS // 2)
    for slot in sources:
        fill(state, slot, rng)
    pages = random_pages(state, rng)
    for target in range(NUM_SLOTS // 2, NUM_SLOTS):
        fork(state, pages, rng.choice(sources), [target], PER_PAGE)
        state.arrival[target] = rng.randrange(100)
    cut = [[rng.choice([0, 1, 2, 3, 4]) for _ in range(NUM_SLOTS)] for _ in range(NUM_ROLES)]
    state.kv_len.copy_((state.kv_len - torch.tensor(cut)).clamp(min=0))
    return state


def put_anywhere(state: SlotState, rng: random.Random, prm_kv: Role = Role.PRM) -> None:
    """Slots in any phase, some of them candidates."""
    rare = rng.random() < 0.2
    for slot in range(NUM_SLOTS):
        state.phase[slot] = rng.choice(_RUNNING + _RARE * rare)
        state.prompt_roles[slot] = rng.choice([0, 1, 2, 4, 7, 7, 7])
        state.lacks_pages[slot] = rng.random() < 0.1
        state.candidates[slot] = rng.choice([0, 3])
        state.group[slot] = rng.choice([-1, 2, 5])
        state.ended[slot] = rng.random() < 0.7
        state.step_source[slot] = rng.choice([Role.DRAFT, Role.TARGET])
        state.mode[slot] = rng.choice([Mode.RSD] * 4 + [*Mode])
        state.finish[slot] = rng.choice([Finish.NONE] * 6 + [*Finish])
        state.confidence[slot] = rng.choice([rng.random(), torch.nan])
        state.stream_tokens[slot] = rng.random() < 0.3
    state.active.copy_(torch.tensor([rng.random() < 0.9 for _ in range(NUM_SLOTS)]))
    state.group_left.fill_(0)
    for group in (2, 5):
        state.group_left[group] = rng.randint(1, 3)
    # Who waits for the PRM has something for it to read.
    scores = state.phase == Phase.SCORE
    for role in (prm_kv, Role.PRM):
        most = state.prm_length - 1
        state.kv_len[role] = state.kv_len[role].where(~scores, state.kv_len[role].minimum(most))
    if prm_kv != Role.PRM:
        state.prompt_roles.bitwise_and_(~(1 << Role.PRM))
