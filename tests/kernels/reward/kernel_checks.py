"""Reward heads with policies in Triton against their twins. Run by `test_kernel.py`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_engine.core.slots import fill_slot
from rsd_kernels import ops
from rsd_kernels.policy.formula import PolicyKind, accept_probability
from rsd_kernels.policy.kernel import accepts
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward import accept as accept_kernel
from rsd_kernels.reward import kernel, loop_twin, twin
from rsd_kernels.reward import scores as reward_scores
from rsd_kernels.reward.heads import (
    ClassesHead,
    EnsembleHead,
    RewardHead,
    TwoClassHead,
    ValueHead,
)
from rsd_kernels.state.enums import Phase, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.kernels.harness.forks import put_forks
from tests.kernels.harness.shadow import (
    copied,
    copied_on_cpu,
    differences,
    random_core,
    random_requests,
)
from tests.kernels.harness.slots import PER_PAGE
from tests.kernels.harness.tensors import DEVICE, DTYPES
from tests.loop.toy import run, toy_request
from tests.loop.two_vocabularies import for_two_vocabularies

MakeHead = Callable[[int, torch.dtype, torch.Generator], RewardHead]


def value_head(width: int, dtype: torch.dtype, generator: torch.Generator) -> ValueHead:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight = normal(1, width) * 1.5 / width**0.5
    return ValueHead((1 + 0.1 * normal(width)).to(dtype), 1e-6, weight, normal(1))


def two_class_head(width: int, dtype: torch.dtype, generator: torch.Generator) -> TwoClassHead:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    units = width - 3 if width > 8 else width
    return TwoClassHead(
        (1 + 0.1 * normal(width)).to(dtype),
        1e-6,
        (normal(units, width) / width**0.5).to(dtype),
        normal(units).to(dtype),
        (2 * normal(2, units) / units**0.5).to(dtype),
        normal(2).to(dtype),
    )


def ranged_head(width: int, dtype: torch.dtype, generator: torch.Generator) -> ValueHead:
    """A value head whose rewards are from -1 to 1."""
    return replace(value_head(width, dtype, generator), scale=2.0, offset=-1.0)


def ensemble_head(width: int, dtype: torch.dtype, generator: torch.Generator) -> EnsembleHead:
    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-2] ** 0.5).to(dtype)

    count, units = (35, 19) if width > 8 else (3, 128)
    return EnsembleHead(
        (1 + 0.1 * torch.randn(width, generator=generator)).to(dtype),
        1e-6,
        1.5 * normal(count, width, units),
        normal(count, units),
        1.5 * normal(count, units, units),
        normal(count, units),
        4 * normal(count, units, 1),
        normal(count, 1),
    )


def digits_head(width: int, dtype: torch.dtype, generator: torch.Generator) -> ClassesHead:
    weight = (4 * torch.randn(10, width, generator=generator) / width**0.5).to(dtype)
    norm_weight = (1 + 0.1 * torch.randn(width, generator=generator)).to(dtype)
    bias = torch.randn(10, generator=generator).to(dtype)
    return ClassesHead(norm_weight, 1e-6, weight, bias, torch.arange(10) / 9)


def greedy_head(width: int, dtype: torch.dtype, generator: torch.Generator) -> ClassesHead:
    return replace(digits_head(width, dtype, generator), greedy=True)


HEADS: dict[str, MakeHead] = {
    "value": value_head,
    "ranged": ranged_head,
    "classes": two_class_head,
    "ensemble": ensemble_head,
    "digits": digits_head,
    "greedy": greedy_head,
}


def with_tensors(head: RewardHead, change: Any) -> RewardHead:
    named = {f.name: getattr(head, f.name) for f in fields(head)}
    tensors = {name: change(value) for name, value in named.items() if isinstance(value, Tensor)}
    return replace(head, **tensors)


def close(result: Tensor, plain: Tensor, exact: Tensor, head: RewardHead) -> None:
    """Error at most twice plain PyTorch's; where that is lucky, one rounding of 1 in its dtype."""
    assert bool(result.isfinite().all()), "not finite"
    error = (result.double() - exact).abs().max().item()
    of_pytorch = (plain.double() - exact).abs().max().item()
    weight = head.weight if isinstance(head, ValueHead | ClassesHead) else head.inner
    rounding = torch.finfo(weight.dtype).eps * (4 if weight.dtype == torch.float32 else 1)
    assert error <= max(2 * of_pytorch, rounding), f"error {error:.3g}, PyTorch {of_pytorch:.3g}"


@triton.jit
def _accepts_kernel(
    kind: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    reward: tl.tensor,
    draw: tl.tensor,
    out: tl.tensor,
    num_lanes: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    o = tl.arange(0, BLOCK)
    m = o < num_lanes
    m_accept = accepts(
        tl.load(kind + o, mask=m, other=0),
        tl.load(a + o, mask=m, other=0.0),
        tl.load(b + o, mask=m, other=0.0),
        tl.load(reward + o, mask=m, other=0.0),
        tl.load(draw + o, mask=m, other=0.0),
    )
    tl.store(out + o, m_accept.to(tl.int32), mask=m)


NUMBERS = {
    PolicyKind.CONSTANT: [(0.0, 0.0), (0.3, 0.0), (1.0, 0.0)],
    PolicyKind.THRESHOLD: [(0.7, 0.0), (0.5, 0.0), (-1.0, 0.0), (2.0, 0.0)],
    PolicyKind.CLIP: [(0.0, 0.0)],
    PolicyKind.SIGMOIDAL: [(0.0, 0.0)],
    PolicyKind.LOGISTIC: [(6.0, 0.5), (5000.0, 0.5), (10.0, 0.7)],
}


@pytest.mark.parametrize("kind", PolicyKind)
def test_the_kernel_accepts_with_the_probability_of_the_formula(kind: PolicyKind) -> None:
    """Every draw just below it accepts, and every draw at it or just above rejects."""
    values = [*(i / 32 for i in range(33)), 0.3, 0.7, -0.2, 1.3, torch.inf, -torch.inf, torch.nan]
    cases = torch.tensor([(a, b, r) for a, b in NUMBERS[kind] for r in values])
    weights = [accept_probability(kind, *case) for case in cases.tolist()]
    draws = torch.tensor(weights)
    # Draws are float32: the last below w, and the first that is not.
    under = torch.tensor([float(d) < w for d, w in zip(draws, weights, strict=True)])
    below = torch.where(under, draws, draws.nextafter(torch.tensor(-1.0)))
    above = torch.where(under, draws.nextafter(torch.tensor(2.0)), draws)
    a, b, reward = (column.contiguous().to(DEVICE) for column in cases.T)
    for draw, expected in ((below, ~cases[:, 2].isnan()), (above, torch.zeros(len(cases)))):
        out = torch.full((len(cases),), 9, dtype=torch.int32, device=DEVICE)
        kinds = torch.full_like(out, int(kind))
        block = triton.next_power_of_2(len(cases))
        _accepts_kernel[(1,)](kinds, a, b, reward, draw.to(DEVICE), out, len(cases), BLOCK=block)
        assert out.tolist() == expected.int().tolist()


def poisoned(head: RewardHead, num_seqs: int) -> Tensor:
    return torch.full(reward_scores.scratch_shape(head, num_seqs), torch.nan, device=DEVICE)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_seqs", "width"), [(1, 8), (5, 129), (17, 300)])
def test_reward_and_accept(kind: str, dtype: torch.dtype, num_seqs: int, width: int) -> None:
    generator = torch.Generator().manual_seed(num_seqs)
    head = HEADS[kind](width, dtype, generator)
    hidden = (3 * torch.randn(num_seqs, width + 5, generator=generator)).to(dtype)[:, :width]
    policy_kind = torch.arange(num_seqs, dtype=torch.int32) % len(PolicyKind)
    policy_a = torch.full((num_seqs,), 0.6)
    policy_b = torch.full((num_seqs,), 0.3)
    uniform = torch.rand(num_seqs, generator=generator)
    reward = torch.full((num_seqs,), torch.nan, device=DEVICE)
    accept = torch.full((num_seqs,), 9, dtype=torch.int32, device=DEVICE)
    on_device = [t.to(DEVICE) for t in (policy_kind, policy_a, policy_b, uniform)]
    ours = with_tensors(head, lambda t: t.to(DEVICE))
    accept_kernel.reward_accept(
        hidden.to(DEVICE), ours, *on_device, reward=reward, accept=accept,
        scratch=poisoned(head, num_seqs),
    )  # fmt: skip
    exact = twin.rewards(hidden.double(), with_tensors(head, Tensor.double))
    close(reward.cpu(), twin.rewards(hidden, head), exact, head)
    assert len(set(accept.tolist()) - {0, 1}) == 0
    for s, r in enumerate(reward.tolist()):
        kind_of_row, a, b = int(policy_kind[s]), float(policy_a[s]), float(policy_b[s])
        probability = accept_probability(kind_of_row, a, b, r)
        assert int(accept[s]) == int(float(uniform[s]) < probability)


@pytest.mark.parametrize("kind", HEADS)
def test_rewards_of_rows_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `ops`, without a policy; also of no rows."""
    generator = torch.Generator().manual_seed(0)
    head = HEADS[kind](40, torch.float32, generator)
    hidden = torch.randn(19, 40, generator=generator)
    wanted = twin.rewards(hidden, head)
    monkeypatch.setattr("rsd_kernels.ops.runs_on", lambda _: True)
    theirs = with_tensors(head, lambda tensor: tensor.to(DEVICE))
    torch.testing.assert_close(ops.rewards(hidden.to(DEVICE), theirs).cpu(), wanted)
    assert ops.rewards(hidden[:0].to(DEVICE), theirs).shape == (0,)


@pytest.mark.parametrize("kind", HEADS)
def test_a_reward_that_is_no_number_is_never_accepted(kind: str) -> None:
    head = HEADS[kind](16, torch.float32, torch.Generator().manual_seed(0))
    hidden = torch.full((5, 16), torch.nan, device=DEVICE)
    reward = torch.zeros(5, device=DEVICE)
    accept = torch.ones(5, dtype=torch.int32, device=DEVICE)
    accept_kernel.reward_accept(
        hidden, with_tensors(head, lambda t: t.to(DEVICE)),
        torch.arange(5, dtype=torch.int32, device=DEVICE), torch.ones(5, device=DEVICE),
        torch.zeros(5, device=DEVICE), torch.zeros(5, device=DEVICE),
        reward=reward, accept=accept,
    )  # fmt: skip
    assert bool(reward.isnan().all())
    assert accept.tolist() == [0] * 5


def score_a_run(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    *,
    two: bool = False,
    ends: str = "written",
    change: Callable[[SlotState], None] = lambda state: None,
) -> Counter[int]:
    """Scores what a run scores by kernel too; its rewards, given to the twin, leave one state.

    Returns the phases in which the scored slots were left. change: of a copy of the run's state,
    which is scored in its place.
    """
    seed, settled = 1 if ends == "device" else 3, 0
    generator = torch.Generator().manual_seed(1)
    width = 48
    head = HEADS[kind](width, torch.float32, generator)
    calls, decide_by_twin, phases = 0, loop_twin.decide, Counter[int]()

    def decide(
        state: SlotState,
        batch: RowBatch,
        _: Tensor,
        tokens_per_page: tuple[int, int, int],
        prm_kv: Role,
        rules: EndRules | None,
    ) -> None:
        nonlocal calls, settled
        calls += 1
        changed, rows = copied_on_cpu(state), copied_on_cpu(batch)
        change(changed)
        hidden = 3 * torch.randn(batch.num_rows, width, generator=generator)
        if calls % 7 == 0:
            hidden[-1] = torch.nan
        ours = copied(changed)
        kernel.score(
            ours, copied(batch), hidden.to(DEVICE), with_tensors(head, lambda t: t.to(DEVICE)),
            tokens_per_page, poisoned(head, batch.num_seqs), prm_kv, copied(rules),
        )  # fmt: skip
        rewards = ours.reward.cpu()[batch.seq_slot.long()]
        last = hidden[(batch.seq_start[1:] - 1).long()]
        done = batch.seq_complete.bool()
        finite = done & ~last.isnan().any(1)
        exact = twin.rewards(last.double(), with_tensors(head, Tensor.double))
        if bool(finite.any()):
            close(rewards[finite], twin.rewards(last, head)[finite], exact[finite], head)
        decide_by_twin(changed, rows, rewards, tokens_per_page, prm_kv, rules)
        assert not differences(changed, ours)
        phases.update(changed.phase[batch.seq_slot[done].long()].tolist())
        settled += int((changed.shortened != state.shortened).sum())
        decide_by_twin(state, batch, rewards, tokens_per_page, prm_kv, rules)

    monkeypatch.setattr(loop_twin, "decide", decide)
    requests = random_requests(seed, count)
    if two:
        requests = [for_two_vocabularies(request) for request in requests]
    run(random_core(seed, two=two, ends=ends), requests)
    assert (settled > 0) == (ends == "device")
    return phases


@pytest.mark.parametrize("kind", ["value", "classes", "ensemble", "digits"])
@pytest.mark.parametrize("two", [False, True], ids=["", "two vocabularies"])
def test_score_in_the_states_of_a_run(
    kind: str, two: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "written" if two else "device"
    assert score_a_run(kind, monkeypatch, 10, two=two, ends=ends).total() > 7


def test_score_in_states_with_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the scored slots are candidates, which wait for their group."""
    change = partial(put_forks, rng=random.Random(0), per_page=PER_PAGE)
    phases = score_a_run("value", monkeypatch, 10, ends="host", change=change)
    assert phases[Phase.CHOICE] > 1 and phases[Phase.CANDIDATE] > 1, phases


@pytest.mark.parametrize("kept", [False, True], ids=["rejected", "kept"])
@pytest.mark.parametrize("separate", [0, 1])
def test_a_decided_step_of_writers_with_contexts_of_their_own(separate: int, kept: bool) -> None:
    """The target's is longer than the draft's here, and what is read of it stays read."""
    sizes = SlotSizes(3, 40, 40, 20, 60, 400)
    state = SlotState.allocate(sizes, torch.device("cpu"))
    fill_slot(state, 1, toy_request("abcdef"), generation=1, arrival=1)
    state.length[1] = state.prm_length[1] = 9
    state.prm_keep[1] = 8
    state.separate_contexts[1] = separate
    state.phase[1] = Phase.SCORE
    for role, read in ((Role.DRAFT, 8), (Role.TARGET, 17), (Role.PRM, 9)):
        take_pages(state, role, 1, -(-read // 3))
        state.kv_len[role, 1] = read
    free = int(state.num_free)
    batch = RowBatch.allocate(4, 3, torch.device("cpu"))
    batch.seq_slot[0], batch.seq_complete[0], batch.seq_kv_len[0] = 1, 1, 9
    batch.seq_start[1:] = 1
    state.num_seqs.fill_(1)
    ours, rows = copied(state), copied(batch)
    bias = torch.full((1,), 9.0 if kept else -9.0)
    head = ValueHead(torch.ones(8), 1e-6, torch.zeros(1, 8), bias)
    hidden = torch.ones(4, 8)
    loop_twin.score(state, batch, hidden, head, (3, 3, 3))
    on_device = with_tensors(head, lambda t: t.to(DEVICE))
    kernel.score(ours, rows, hidden.to(DEVICE), on_device, (3, 3, 3))
    draft, shared, prm = (8, 9, 8) if kept else (6, 6, 7)
    target = 17 if separate else shared
    assert state.kv_len[:, 1].tolist() == [draft, target, prm]
    pages = [-(-read // 3) for read in (draft, target, prm)]
    assert state.num_pages[:, 1].tolist() == pages
    assert int(state.num_free) - free == 3 + 6 + 3 - sum(pages)
    rewriter = Phase.WAIT_HOST if separate else Phase.TARGET
    assert int(state.phase[1]) == (Phase.DRAFT if kept else rewriter)
    assert int(state.length[1]) == int(state.committed[1]) == (9 if kept else 6)
    assert not differences(state, ours)


def test_says_what_is_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    head = with_tensors(value_head(16, torch.float32, generator), lambda t: t.to(DEVICE))
    hidden = torch.randn(4, 16, device=DEVICE)
    whole = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    real = torch.zeros(4, device=DEVICE)
    good = {
        "hidden": hidden, "head": head, "policy_kind": whole, "policy_a": real,
        "policy_b": real, "uniform": real, "reward": real.clone(), "accept": whole.clone(),
    }  # fmt: skip
    bad: list[tuple[dict[str, Any], str]] = [
        ({"hidden": hidden.double()}, "hidden has dtype torch.float64"),
        ({"hidden": hidden.t().contiguous().t()}, "hidden has strides"),
        ({"hidden": hidden[:, :8]}, "norm_weight has shape"),
        ({"policy_kind": real}, "policy_kind has dtype"),
        ({"uniform": real[:3]}, "uniform has shape"),
        ({"scratch": whole}, "scratch has dtype"),
        ({"head": "value"}, "head is a str"),
    ]
    classes = two_class_head(16, torch.float32, generator)
    bad.append(
        ({"head": with_tensors(classes, lambda t: t.to(DEVICE)), "scratch": real[:2]}, "at least")
    )
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            accept_kernel.reward_accept(**(good | change))
