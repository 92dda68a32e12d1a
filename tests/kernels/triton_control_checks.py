"""Control kernels in Triton against their twins. Run by `test_triton_control.py`."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from rsd_kernels import ops
from rsd_kernels.end_step import kernel as end_step_kernel
from rsd_kernels.philox import kernel as philox_kernel
from rsd_kernels.philox import twin as philox_twin
from rsd_kernels.rollback import kernel as rollback_kernel
from rsd_kernels.rollback import twin as rollback_twin
from rsd_kernels.schedule import kernel as schedule_kernel
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import NUM_ROLES, Phase
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from tests.kernels.triton_child import DEVICE, INTERPRETED
from tests.kernels.triton_shadow import (
    copied,
    copied_on_cpu,
    differences,
    random_core,
    random_requests,
    run_shadowed,
)
from tests.loop.toy import run, story


@triton.jit
def _philox_kernel(
    words: tl.tensor, out: tl.tensor, num_lanes: tl.tensor, BLOCK: tl.constexpr
) -> None:  # type: ignore[no-untyped-def]
    o = tl.arange(0, BLOCK)
    mask = o < num_lanes
    row = words + 6 * o
    w0, w1, w2, w3 = philox_kernel.philox4x32(
        tl.load(row, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 1, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 2, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 3, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 4, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 5, mask=mask, other=0).to(tl.uint32),
    )
    tl.store(out + 4 * o, w0.to(tl.int64), mask=mask)
    tl.store(out + 4 * o + 1, w1.to(tl.int64), mask=mask)
    tl.store(out + 4 * o + 2, w2.to(tl.int64), mask=mask)
    tl.store(out + 4 * o + 3, w3.to(tl.int64), mask=mask)


@triton.jit
def _uniform_kernel(
    seed: tl.tensor,
    sample: tl.tensor,
    steps: tl.tensor,
    position: tl.tensor,
    out: tl.tensor,
    role: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # type: ignore[no-untyped-def]
    o = tl.arange(0, BLOCK)
    u = philox_kernel.uniform(
        tl.load(seed + o), tl.load(sample + o), tl.load(steps + o), tl.load(position + o),
        role, philox_kernel.PURPOSE_ACCEPT,
    )  # fmt: skip
    tl.store(out + o, u)


def test_philox_known_answers() -> None:
    ones = [0xFFFFFFFF] * 6
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    words = torch.tensor([[0] * 6, ones, pi], dtype=torch.int64, device=DEVICE)
    out = torch.empty(3, 4, dtype=torch.int64, device=DEVICE)
    _philox_kernel[(1,)](words, out, 3, BLOCK=4)
    expected = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    assert out.tolist() == expected


def test_uniform_has_the_bits_of_the_twin() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, (64,), generator=generator, dtype=dtype)

    seed = random(-(2**63), 2**63 - 1, torch.int64)
    sample, steps = random(0, 9, torch.int32), random(0, 500, torch.int32)
    position = random(0, 2**31 - 1, torch.int32)
    out = torch.empty(64, device=DEVICE)
    inputs = [t.to(DEVICE) for t in (seed, sample, steps, position)]
    _uniform_kernel[(1,)](*inputs, out, 2, BLOCK=64)
    expected = [
        philox_twin.uniform(
            int(seed[i]), int(sample[i]), num_steps=int(steps[i]), position=int(position[i]),
            role=2, purpose=philox_twin.Purpose.ACCEPT,
        )
        for i in range(64)
    ]  # fmt: skip
    assert out.tolist() == expected


def _paged(
    num_roles: int, num_slots: int, tokens_per_page: tuple[int, ...], seed: int
) -> dict[str, torch.Tensor]:
    """A page table in use; some slots are empty, one may be full, the stack is shuffled."""
    generator = torch.Generator().manual_seed(seed)
    columns = 37
    kv_len = torch.randint(0, 90, (num_roles, num_slots), generator=generator)
    kv_len[:, ::3] = 0
    for role, tokens in enumerate(tokens_per_page):
        kv_len[role] = kv_len[role].clamp(max=columns * tokens)
        kv_len[role, -1] = columns * tokens
    pages = torch.randperm(num_roles * num_slots * columns + 5, generator=generator)
    table = torch.full((num_roles, num_slots, columns), -7)
    num_pages = torch.zeros(num_roles, num_slots, dtype=torch.long)
    taken = 0
    for role in range(num_roles):
        for slot in range(num_slots):
            held = -(-int(kv_len[role, slot]) // tokens_per_page[role])
            table[role, slot, :held] = pages[taken : taken + held]
            num_pages[role, slot] = held
            taken += held
    free = torch.full((len(pages),), -9)
    free[: len(pages) - taken] = pages[taken:]
    keep = torch.randint(0, 100, (num_roles, num_slots), generator=generator)
    keep[:, 1::4] = 0
    named = {
        "kv_len": kv_len, "num_pages": num_pages, "page_table": table, "free_pages": free,
        "num_free": torch.tensor([len(pages) - taken]), "keep": keep,
    }  # fmt: skip
    return {name: tensor.to(torch.int32).to(DEVICE) for name, tensor in named.items()}


@pytest.mark.parametrize(
    ("num_roles", "num_slots", "tokens_per_page"),
    [(3, 5, (3, 2, 5)), (3, 16, (16, 7, 16)), (1, 1, (4,)), (2, 9, (1, 64))],
)
def test_rollback(num_roles: int, num_slots: int, tokens_per_page: tuple[int, ...]) -> None:
    for seed in range(3):
        ours = _paged(num_roles, num_slots, tokens_per_page, seed)
        twins = {name: tensor.clone() for name, tensor in ours.items()}
        rollback_kernel.rollback(**ours, tokens_per_page=tokens_per_page)
        rollback_twin.rollback(**twins, tokens_per_page=tokens_per_page)
        for name, tensor in twins.items():
            assert torch.equal(ours[name], tensor), name


@triton.jit
def _one_page_too_few(
    kv_len: tl.tensor,
    num_pages: tl.tensor,
    o_row: tl.tensor,
    b_keep: tl.tensor,
    tokens_per_page: tl.tensor,
    m_lane: tl.tensor,
) -> tuple[tl.tensor, ...]:  # type: ignore[no-untyped-def]
    b_kv = tl.minimum(tl.load(kv_len + o_row, mask=m_lane, other=0), b_keep)
    b_held = tl.load(num_pages + o_row, mask=m_lane, other=0)
    return b_kv, b_held, tl.maximum(b_held - b_kv // tokens_per_page, 0)


@triton.jit
def _keeps_too_much(
    kv_len: tl.tensor,
    num_pages: tl.tensor,
    o_row: tl.tensor,
    b_keep: tl.tensor,
    tokens_per_page: tl.tensor,
    m_lane: tl.tensor,
) -> tuple[tl.tensor, ...]:  # type: ignore[no-untyped-def]
    b_kv = tl.load(kv_len + o_row, mask=m_lane, other=0)
    b_held = tl.load(num_pages + o_row, mask=m_lane, other=0)
    b_needed = (tl.minimum(b_kv, b_keep) + tokens_per_page - 1) // tokens_per_page
    return b_kv, b_held, tl.maximum(b_held - b_needed, 0)


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions it was made of")
@pytest.mark.parametrize("broken", [_one_page_too_few, _keeps_too_much])
def test_a_broken_rollback_is_caught(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback_kernel, "_surplus", broken)
    with pytest.raises(AssertionError):
        test_rollback(2, 9, (3, 4))


def test_rollback_says_what_is_wrong() -> None:
    good = _paged(2, 3, (4, 4), 0)
    for name, bad, message in (
        ("keep", good["keep"][:, :2], "keep has shape"),
        ("keep", good["keep"].long(), "keep has dtype torch.int64"),
        ("page_table", good["page_table"].transpose(0, 1), "page_table has shape"),
        ("kv_len", good["kv_len"].t().contiguous().t(), "kv_len has strides"),
    ):
        with pytest.raises(ValueError, match=message):
            rollback_kernel.rollback(**(good | {name: bad}), tokens_per_page=(4, 4))
    with pytest.raises(ValueError, match="tokens_per_page is"):
        rollback_kernel.rollback(**good, tokens_per_page=(4,))


def test_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {
        "schedule": schedule_kernel.schedule,
        "advance": schedule_kernel.advance,
        "end_step": end_step_kernel.end_step,
        "decide": end_step_kernel.decide,
        "truncate_kv": rollback_kernel.truncate_kv,
    }
    calls = run_shadowed(monkeypatch, kernels, 1, count=10)
    assert all(calls[name] > 0 for name in kernels), calls


def _changed(state: SlotState, rng: random.Random) -> None:
    """What a short run seldom meets: roles that have waited, few pages, reasons to return."""
    for role in range(NUM_ROLES):
        state.role_wait[role] = rng.choice([0, 3, 15, 16, 17, 1023, 1024, 1500])
    state.last_role.fill_(rng.randrange(NUM_ROLES))
    if rng.random() < 0.3:
        state.num_free.fill_(rng.randint(0, min(4, int(state.num_free))))
    if rng.random() < 0.1:
        state.active[rng.randrange(state.num_slots)] = 0
    if rng.random() < 0.1:
        state.host_request.fill_(rng.choice([1, 2]))
    if rng.random() < 0.05:
        state.tick_cap.fill_(int(state.tick) + rng.choice([0, 1]))
    if rng.random() < 0.1:
        state.log_head.fill_(state.log.shape[0] - rng.randint(1, 400))
    if rng.random() < 0.05:
        state.phase[rng.randrange(state.num_slots)] = rng.choice([Phase.WAIT_HOST, Phase.DONE])


@pytest.mark.parametrize("rule", BatchingRule)
def test_plan_in_changed_states(rule: BatchingRule, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    chosen: Counter[int] = Counter()
    schedule_of_the_run = schedule_twin.schedule

    def schedule(state: SlotState, batch: RowBatch, tokens_per_page: Any, _: BatchingRule) -> None:
        ours, theirs = copied_on_cpu(state), copied_on_cpu(batch)
        _changed(ours, rng)
        kernel_state, kernel_batch = copied(ours), copied(theirs)
        schedule_twin.schedule(ours, theirs, tokens_per_page, rule)
        schedule_kernel.schedule(kernel_state, kernel_batch, tokens_per_page, rule)
        assert not differences(ours, kernel_state) + differences(theirs, kernel_batch)
        chosen[int(ours.pass_role)] += 1
        schedule_of_the_run(state, batch, tokens_per_page, rule)

    monkeypatch.setattr(ops, "schedule", schedule)
    run(random_core(6, num_slots=17, max_rows=7), random_requests(6, 12))
    assert min(chosen[role] for role in range(NUM_ROLES + 1)) > 1, chosen


def test_a_run_on_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `ops`: the same steps, rewards and decisions as on the twins."""
    requests = random_requests(4, 3, logprobs=False)

    def told() -> list[list[str]]:
        events = run(random_core(4), requests)
        return [story(events[key]) for key in sorted(events)]

    by_twins = told()
    assert any("rejected" in line for lines in by_twins for line in lines)
    if INTERPRETED:
        launches = []
        monkeypatch.setattr("rsd_kernels.ops.runs_on", lambda tensor: launches.append(1) or True)
        assert told() == by_twins
        assert len(launches) > 100


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("page_table", (0, 1, 0), 99, r"page_table\[0, 1\]\[0\] is 99; allowed: 0 to 61"),
        ("page_table", (2, 0, 0), -1, r"page_table\[2, 0\]\[0\] is -1"),
        ("length", (1,), 97, r"length\[1\] is 97; allowed: 0 to 96"),
        ("kv_len", (1, 0), 50, r"kv_len\[TARGET\]\[0\] is 50"),
        ("num_free", (0,), 63, r"num_free\[0\] is 63"),
    ],
)
def test_debug_mode_says_which_value_is_wrong(
    name: str, index: tuple[int, ...], value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")
    core = random_core(0)
    state = copied(core.state)
    state.num_pages.fill_(1)
    state.length.fill_(9)
    end_step_kernel.end_step(state, core.loop.tokens_per_page)
    getattr(state, name)[index] = value
    with pytest.raises(ValueError, match=message):
        end_step_kernel.end_step(state, core.loop.tokens_per_page)
