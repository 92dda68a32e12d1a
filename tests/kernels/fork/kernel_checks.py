"""Forks, shared pages and candidates in Triton against the twins. Run by `test_kernel.py`."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from rsd_kernels.end_step import kernel as end_step_kernel
from rsd_kernels.end_step import twin as end_step_twin
from rsd_kernels.fork import kernel as fork_kernel
from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.fork.columns import forked_columns
from rsd_kernels.reward import kernel as score_kernel
from rsd_kernels.reward import loop_twin
from rsd_kernels.reward.heads import ValueHead
from rsd_kernels.rollback import kernel as rollback_kernel
from rsd_kernels.rollback import twin as rollback_twin
from rsd_kernels.schedule import kernel as schedule_kernel
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import NUM_ROLES, ConfidenceKind, Phase, Role
from rsd_kernels.state.rows import RowBatch
from tests.kernels.harness.forked import (
    NUM_SLOTS,
    fill,
    put_anywhere,
    random_pages,
    shared_state,
)
from tests.kernels.harness.shadow import copied, copied_on_cpu, differences
from tests.kernels.harness.slots import PER_PAGE, make_state

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_pages", [90, 45, 34])
def test_fork(num_pages: int) -> None:
    rng = random.Random(num_pages)
    shared = copies = 0
    for _ in range(2):
        state = make_state(NUM_SLOTS, num_pages)
        for slot in (1, 4):
            fill(state, slot, rng)
        for slot in (0, 6):
            state.tokens[slot].random_(0, 9)  # of a request that has left
        state.guess_end[4] = state.length[4] + 2
        pages = random_pages(state, rng)
        ours, our_pages = copied(state), copied(pages)
        for source, targets in ((4, [0]), (1, [3, 7, 2]), (0, [6])):
            free = int(state.num_free)
            fork_twin.fork(state, pages, source, targets, PER_PAGE)
            fork_kernel.fork(ours, our_pages, source, targets, PER_PAGE)
            copies += free - int(state.num_free)
        assert not differences(state, ours)
        assert torch.equal(pages, our_pages.cpu())
        shared += int((state.page_owners > 1).sum())
    assert shared > 8 and copies > 3


def test_every_column_of_a_slot_is_forked_in_whole_words() -> None:
    state = make_state()
    for column in forked_columns():
        tensor = getattr(state, column.name)
        assert not column.by_role and tensor[0].nbytes % 4 == 0, column


def test_fork_says_what_is_wrong() -> None:
    state = copied(make_state(3, 20))
    pages = torch.zeros(20, 8, dtype=torch.uint8, device=state.length.device)
    with pytest.raises(ValueError, match=r"source is 1 and targets is \[1\]"):
        fork_kernel.fork(state, pages, 1, [1], PER_PAGE)
    with pytest.raises(ValueError, match=r"targets is \[2, 3\]; they must be .* 0 to 2"):
        fork_kernel.fork(state, pages, 1, [2, 3], PER_PAGE)
    with pytest.raises(ValueError, match=r"pages has shape \[20\]; it must be \[20, 'page_b"):
        fork_kernel.fork(state, pages[:, 0].contiguous(), 1, [2], PER_PAGE)
    with pytest.raises(ValueError, match="pages has dtype torch.int32"):
        fork_kernel.fork(state, pages.int(), 1, [2], PER_PAGE)


@pytest.mark.parametrize("rule", BatchingRule)
@pytest.mark.parametrize("prm_kv", [Role.PRM, Role.TARGET])
def test_schedule(rule: BatchingRule, prm_kv: Role) -> None:
    rng = random.Random(f"{rule} {prm_kv}")
    seen: Counter[str] = Counter()
    for _ in range(25):
        state = shared_state(rng)
        put_anywhere(state, rng, prm_kv)
        if rng.random() < 0.3:
            state.num_free.fill_(min(int(state.num_free), rng.randint(0, 3)))
        batch = RowBatch.allocate(rng.choice([5, 12, 40]), NUM_SLOTS, CPU, NUM_SLOTS + 4)
        ours, rows, before = copied(state), copied(batch), copied_on_cpu(state)
        schedule_twin.schedule(state, batch, PER_PAGE, rule, prm_kv)
        schedule_kernel.schedule(ours, rows, PER_PAGE, rule, prm_kv)
        assert not differences(state, ours) + differences(batch, rows)
        seen["returned"] += int(state.pass_role) == NUM_ROLES
        seen["given up"] += int((state.kv_len < before.kv_len).sum())
        read = state.phase[batch.seq_slot[: int(state.num_seqs)].long()]
        seen["prompts"] += int((read == Phase.PROMPT).sum())
        seen["taken"] += int((state.page_stamp > before.page_stamp).sum())
    assert min(seen.values()) > 1, seen


def test_a_role_without_rows_has_given_up_pages_nevertheless() -> None:
    """The next role finds their other owner alone."""
    state = make_state(2, 2)
    state.length.fill_(4)
    state.prm_length.fill_(4)
    state.active.fill_(1)
    state.num_logprobs.fill_(-1)
    schedule_twin.take_pages(state, Role.TARGET, 0, 2)
    state.kv_len[Role.TARGET, 0] = 4
    state.kv_len[Role.TARGET] = torch.tensor([3, 3])
    state.page_table[Role.TARGET, 1, :2] = state.page_table[Role.TARGET, 0, :2]
    state.num_pages[Role.TARGET, 1] = 2
    state.page_owners.fill_(2)
    state.phase.copy_(torch.tensor([Phase.SCORE, Phase.TARGET]))
    batch = RowBatch.allocate(8, 2, CPU)
    ours, rows = copied(state), copied(batch)
    schedule_twin.schedule(state, batch, PER_PAGE, BatchingRule.MOST_READY, Role.TARGET)
    schedule_kernel.schedule(ours, rows, PER_PAGE, BatchingRule.MOST_READY, Role.TARGET)
    assert not differences(state, ours) + differences(batch, rows)
    assert int(state.pass_role) == Role.TARGET and state.lacks_pages.tolist() == [1, 0]


@pytest.mark.parametrize("kind", [ConfidenceKind.NONE, ConfidenceKind.GIVEN])
def test_end_step(kind: ConfidenceKind) -> None:
    rng = random.Random(str(kind))
    phases: Counter[int] = Counter()
    for _ in range(20):
        state = shared_state(rng)
        put_anywhere(state, rng)
        ours, alone = copied(state), copied_on_cpu(state)
        end_step_twin.end_step(state, PER_PAGE, kind)
        end_step_kernel.end_step(ours, PER_PAGE, kind)
        assert not differences(state, ours)
        phases.update(state.phase[(state.group >= 0) & (state.ended != 0)].tolist())
        slot = rng.randrange(NUM_SLOTS)
        ours = copied(alone)
        end_step_twin.end_slot_step(alone, slot, PER_PAGE, kind)
        end_step_kernel.end_slot_step(ours, slot, PER_PAGE, kind)
        assert not differences(alone, ours)
    assert phases[Phase.CHOICE] > 5 and phases[Phase.CANDIDATE] > 5, phases
    assert phases[Phase.SCORE] > 5 or kind, phases


def test_score() -> None:
    rng = random.Random(3)
    phases: Counter[int] = Counter()
    weight, bias = torch.ones(1, 8), torch.zeros(1)
    head = ValueHead(torch.ones(8), 1e-6, weight, bias)
    for _ in range(12):
        state = shared_state(rng)
        put_anywhere(state, rng)
        state.phase.fill_(Phase.SCORE)
        state.kv_len[Role.PRM] = state.kv_len[Role.PRM].minimum(state.prm_length - 1)
        batch = RowBatch.allocate(40, NUM_SLOTS, CPU)
        schedule_twin.schedule(state, batch, PER_PAGE)
        ours, rows = copied(state), copied(batch)
        hidden = torch.randn(40, 8, generator=torch.Generator().manual_seed(rng.randrange(99)))
        score_kernel.score(ours, rows, copied(hidden), copied(head), PER_PAGE)
        rewards = copied_on_cpu(ours.reward)[batch.seq_slot.long()]
        loop_twin.decide(state, batch, rewards, PER_PAGE)
        assert not differences(state, ours)
        phases.update(state.phase.tolist())
    assert phases[Phase.CHOICE] > 3 and phases[Phase.CANDIDATE] > 3, phases


def test_truncate_kv() -> None:
    rng = random.Random(1)
    freed = stay = 0
    for _ in range(10):
        state = shared_state(rng)
        ours = copied(state)
        for slot in range(NUM_SLOTS):
            held, free = int(state.num_pages.sum()), int(state.num_free)
            keep = [rng.choice([0, 3, 7]) for _ in range(NUM_ROLES)]
            rollback_twin.truncate_kv(state, slot, keep, PER_PAGE)
            rollback_kernel.truncate_kv(ours, slot, keep, PER_PAGE)
            given = held - int(state.num_pages.sum())
            freed += int(state.num_free) - free
            stay += given - (int(state.num_free) - free)
        assert not differences(state, ours)
    assert freed > 20 and stay > 20
