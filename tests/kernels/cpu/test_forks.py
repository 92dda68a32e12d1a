"""The loop ops of the CPU library against their twins where slots share pages, read prompts only,
or write candidates for a step."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from rsd_kernels.cpu import control
from rsd_kernels.cpu import library as native
from rsd_kernels.end_step import twin as end_step_twin
from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.reward import loop_twin as score_twin
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import NUM_ROLES, Phase, Role
from rsd_kernels.state.rows import RowBatch
from tests.kernels.harness.forked import NUM_SLOTS, put_anywhere, random_pages, shared_state
from tests.kernels.harness.shadow import copied_on_cpu, differences
from tests.kernels.harness.slots import PER_PAGE

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    if native.load() is None:
        pytest.skip(f"the CPU library is {native.status()}")


@pytest.mark.parametrize("rule", BatchingRule)
@pytest.mark.parametrize("prm_kv", [Role.PRM, Role.TARGET])
def test_schedule(rule: BatchingRule, prm_kv: Role) -> None:
    rng, seen = random.Random(f"{rule} {prm_kv}"), Counter[str]()
    for _ in range(80):
        ours = shared_state(rng)
        put_anywhere(ours, rng, prm_kv)
        if rng.random() < 0.3:
            ours.num_free.fill_(min(int(ours.num_free), rng.randint(0, 3)))
        rows = RowBatch.allocate(rng.choice([5, 12, 40]), NUM_SLOTS, CPU, NUM_SLOTS + 4)
        theirs, their_rows, before = map(copied_on_cpu, (ours, rows, ours))
        schedule_twin.schedule(ours, rows, PER_PAGE, rule, prm_kv)
        control.schedule(theirs, their_rows, PER_PAGE, rule, prm_kv)
        assert not differences(ours, theirs) + differences(rows, their_rows)
        seen["returned"] += int(ours.pass_role) == NUM_ROLES
        seen["left shared pages"] += int((ours.kv_len < before.kv_len).sum())
        slots = rows.seq_slot[: int(ours.num_seqs)].long()
        seen["prompts"] += int((ours.phase[slots] == Phase.PROMPT).sum())
        seen["took pages"] += int((ours.page_stamp > before.page_stamp).sum())
    assert min(seen.values()) > 2, seen


def test_end_step() -> None:
    rng, phases = random.Random(0), Counter[int]()
    for _ in range(100):
        ours = shared_state(rng)
        put_anywhere(ours, rng)
        theirs, before = copied_on_cpu(ours), ours.phase.clone()
        end_step_twin.end_step(ours, PER_PAGE)
        control.end_step(theirs, PER_PAGE)
        assert not differences(ours, theirs)
        phases.update(ours.phase[ours.phase != before].tolist())
    assert min(phases[phase] for phase in (Phase.CHOICE, Phase.CANDIDATE, Phase.DONE)) > 10, phases


def test_decide() -> None:
    rng, phases = random.Random(0), Counter[int]()
    for seed in range(100):
        ours = shared_state(rng)
        put_anywhere(ours, rng)
        rows = RowBatch.allocate(NUM_SLOTS, NUM_SLOTS, CPU)
        rows.seq_slot.copy_(torch.tensor(rng.sample(range(NUM_SLOTS), NUM_SLOTS)))
        rows.seq_complete.copy_(torch.tensor(rng.choices([0, 1, 1], k=NUM_SLOTS)))
        ours.num_seqs.fill_(NUM_SLOTS)
        rewards = torch.rand(NUM_SLOTS, generator=torch.Generator().manual_seed(seed))
        rewards[rng.randrange(NUM_SLOTS)] = torch.nan
        theirs, before = copied_on_cpu(ours), ours.phase.clone()
        score_twin.decide(ours, rows, rewards, PER_PAGE)
        control.decide(theirs, rows, rewards, PER_PAGE)
        assert not differences(ours, theirs)
        phases.update(ours.phase[ours.phase != before].tolist())
    assert min(phases[phase] for phase in (Phase.CHOICE, Phase.CANDIDATE, Phase.DONE)) > 10, phases


def test_fork() -> None:
    rng, as_read = random.Random(0), Counter[bool]()
    for _ in range(100):
        ours = shared_state(rng)
        source, *targets = rng.sample(range(NUM_SLOTS), rng.randint(2, 5))
        for target in targets:
            truncate_kv(ours, target, (0, 0, 0), PER_PAGE)
        ours.num_free.fill_(min(int(ours.num_free), rng.choice([0, 2, 99])))
        ours.guess_end.copy_(ours.length + rng.randint(-1, 3))
        pages = random_pages(ours, rng)
        theirs, their_pages = copied_on_cpu(ours), pages.clone()
        fork_twin.fork(ours, pages, source, targets, PER_PAGE)
        control.fork(theirs, their_pages, source, targets, PER_PAGE)
        assert not differences(ours, theirs)
        assert torch.equal(pages, their_pages)
        for target in targets:
            as_read.update((ours.kv_len[:, target] == ours.kv_len[:, source]).tolist())
    assert min(as_read.values()) > 20, as_read
