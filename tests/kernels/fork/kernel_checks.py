"""Forks, shared pages and candidates in Triton against the twins. Run by `test_kernel.py`."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch

from rsd_kernels import ops
from rsd_kernels.end_step import kernel as end_step_kernel
from rsd_kernels.end_step import twin as end_step_twin
from rsd_kernels.fork import kernel as fork_kernel
from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.fork.columns import forked_columns
from rsd_kernels.rollback import kernel as rollback_kernel
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.schedule import kernel as schedule_kernel
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import ConfidenceKind, Phase, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.write import kernel as write_kernel
from rsd_kernels.write import twin as write_twin
from tests.kernels.harness import parts
from tests.kernels.harness.forks import put_forks
from tests.kernels.harness.shadow import (
    Op,
    Shadow,
    copied,
    copied_on_cpu,
    differences,
    random_core,
    random_requests,
)
from tests.kernels.harness.slots import PER_PAGE, make_state
from tests.loop.toy import NUM_IDS, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", [0, 2])
def test_states_with_forks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared pages, candidates and prompts that are only read, put into the states of a run."""
    kernels: dict[str, Op] = {
        "schedule": schedule_kernel.schedule,
        "write": write_kernel.write,
    }
    prm_kv = random_core(seed).loop.prm_kv
    change = partial(put_forks, rng=random.Random(seed), per_page=PER_PAGE, prm_kv=prm_kv)
    shadow = Shadow(monkeypatch, kernels, change=change)
    run(random_core(seed), random_requests(seed, 14))
    assert min(shadow.calls[name] for name in kernels) > 4, shadow.calls
    wanted = ("gave up a shared page", "read a prompt", "waits for its group", "can be chosen")
    assert min(shadow.seen[what] for what in wanted) > 0, shadow.seen


@pytest.mark.parametrize("kind", [ConfidenceKind.NONE, ConfidenceKind.GIVEN])
def test_ended_candidates(kind: ConfidenceKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either writer, that can be scored or not; all at once, and one alone."""
    rng = random.Random(int(kind))
    phases: Counter[int] = Counter()

    def write(state: SlotState, *args: Any) -> None:
        changed = copied_on_cpu(state)
        put_forks(changed, rng, PER_PAGE)
        for slot in range(changed.num_slots):
            changed.ended[slot] = rng.randrange(2)
            changed.step_source[slot] = rng.choice([Role.DRAFT, Role.TARGET])
            changed.confidence[slot] = rng.choice([rng.random(), torch.nan])
        alone, ours = copied_on_cpu(changed), copied(changed)
        end_step_twin.end_step(changed, PER_PAGE, kind)
        parts.end_step(ours, PER_PAGE, kind)
        assert not differences(changed, ours)
        phases.update(changed.phase[(changed.group >= 0) & (changed.ended != 0)].tolist())
        slot, ours = rng.randrange(changed.num_slots), copied(alone)
        end_step_twin.end_slot_step(alone, slot, PER_PAGE, kind)
        end_step_kernel.end_slot_step(ours, slot, PER_PAGE, kind)
        assert not differences(alone, ours)
        write_twin.write(state, *args)

    monkeypatch.setattr(ops, "write", write)
    run(random_core(0), random_requests(0, 5))
    assert phases[Phase.CHOICE] > 2 and phases[Phase.CANDIDATE] > 2, phases
    assert bool(phases[Phase.SCORE]) == (kind == ConfidenceKind.NONE), phases


def test_a_role_without_rows_has_given_up_pages_nevertheless() -> None:
    """The next role finds their other owner alone."""
    state = make_state(2, 2)
    state.length.fill_(4)
    state.prm_length.fill_(4)
    state.active.fill_(1)
    state.num_logprobs.fill_(-1)
    take_pages(state, Role.TARGET, 0, 2)
    state.kv_len[Role.TARGET] = 3
    state.page_table[Role.TARGET, 1, :2] = state.page_table[Role.TARGET, 0, :2]
    state.num_pages[Role.TARGET] = 2
    state.page_owners.fill_(2)
    state.phase.copy_(torch.tensor([Phase.SCORE, Phase.TARGET]))
    batch = RowBatch.allocate(8, 2, CPU)
    ours, rows = copied(state), copied(batch)
    schedule_twin.schedule(state, batch, PER_PAGE, BatchingRule.MOST_READY, Role.TARGET)
    schedule_kernel.schedule(ours, rows, PER_PAGE, BatchingRule.MOST_READY, Role.TARGET)
    assert not differences(state, ours) + differences(batch, rows)
    assert int(state.pass_role) == Role.TARGET and state.lacks_pages.tolist() == [1, 0]
    assert state.page_owners.tolist() == [2, 1]


def test_fork_and_truncate_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a run, with and without free pages for what cannot be shared."""
    rng, as_read = random.Random(0), Counter[bool]()
    ticks = 0

    def schedule(state: SlotState, *args: Any) -> None:
        nonlocal ticks
        ticks += 1
        if ticks % 12 == 0:
            check_fork(copied_on_cpu(state), rng, as_read)
        schedule_twin.schedule(state, *args)

    monkeypatch.setattr(ops, "schedule", schedule)
    run(random_core(0), random_requests(0, 12))
    assert min(as_read.values()) > 1, as_read


def check_fork(state: SlotState, rng: random.Random, as_read: Counter[bool]) -> None:
    put_forks(state, rng, PER_PAGE)
    source, *targets = rng.sample(range(state.num_slots), rng.randint(2, 4))
    for target in targets:
        truncate_kv(state, target, (0, 0, 0), PER_PAGE)
    if rng.random() < 0.5:
        state.num_free.fill_(rng.randint(0, 3))
    for column in (state.tokens, state.prm_tokens, state.token_rank, state.top_token):
        column.random_(NUM_IDS)
    state.guess_end.copy_(state.length + rng.randint(-1, 3))
    pages = torch.randint(256, (state.free_pages.shape[0], 512), dtype=torch.uint8)
    ours, our_pages = copied(state), copied(pages)
    fork_twin.fork(state, pages, source, targets, PER_PAGE)
    fork_kernel.fork(ours, our_pages, source, targets, PER_PAGE)
    assert not differences(state, ours)
    assert torch.equal(pages, our_pages.cpu())
    for target in targets:
        as_read.update((state.kv_len[:, target] == state.kv_len[:, source]).tolist())
    for slot in (source, *targets):
        keep = [rng.choice([0, 5, 9]) for _ in Role]
        truncate_kv(state, slot, keep, PER_PAGE)
        rollback_kernel.truncate_kv(ours, slot, keep, PER_PAGE)
    assert not differences(state, ours)


def test_every_column_that_forks_get_has_rows_of_whole_words() -> None:
    state = make_state()
    for name in forked_columns():
        assert getattr(state, name)[0].nbytes % 4 == 0, name


def test_a_page_of_several_chunks() -> None:
    state = copied(make_state(2, 9))
    state.length.fill_(2)
    take_pages(state, Role.DRAFT, 0, 1)
    state.kv_len[Role.DRAFT, 0] = 1
    pages = copied(torch.randint(256, (9, 40007), dtype=torch.uint8))
    wanted = pages.clone()
    wanted[1] = pages[0]
    fork_kernel.fork(state, pages, 0, [1], PER_PAGE)
    assert torch.equal(pages, wanted)


def test_fork_says_what_is_wrong() -> None:
    state = copied(make_state(3, 20))
    pages = copied(torch.zeros(20, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"source is 1 and targets is \[1\]"):
        fork_kernel.fork(state, pages, 1, [1], PER_PAGE)
    with pytest.raises(ValueError, match=r"targets is \[2, 3\]; they must be .* 0 to 2"):
        fork_kernel.fork(state, pages, 1, [2, 3], PER_PAGE)
    with pytest.raises(ValueError, match=r"pages has shape \[20\]; it must be \[20, 'page_b"):
        fork_kernel.fork(state, pages[:, 0].contiguous(), 1, [2], PER_PAGE)
    with pytest.raises(ValueError, match="pages has dtype torch.int32"):
        fork_kernel.fork(state, pages.int(), 1, [2], PER_PAGE)
