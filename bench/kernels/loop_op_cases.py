"""The cases of `bench.control`: reward, decision and rollback, each with its gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from bench.kernels import eager_ops
from bench.kernels.gate import require_close, require_equal
from bench.kernels.loop_op_state import (
    STEP,
    THRESHOLD,
    TOKENS_PER_PAGE,
    LoopOpSizes,
    PageSet,
    copied,
    mid_step,
    moved,
    restore,
    scored_rows,
)
from rsd_kernels import launch as triton_support
from rsd_kernels import ops
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.reward import twin as reward_twin
from rsd_kernels.reward.heads import RewardHead, TwoClassHead, ValueHead
from rsd_kernels.reward.loop_twin import score as score_twin
from rsd_kernels.reward.twin import rewards as rewards_twin
from rsd_kernels.rollback import twin as rollback_twin
from rsd_kernels.state.slots import SlotState

HEAD_KINDS = ("value", "two_class")
_EPS = 1e-6
# Rewards this close to the threshold may fall on either side of it by rounding.
_MARGIN = 0.02


@dataclass(frozen=True)
class LoopOpCase:
    """One loop op, by our kernel and by PyTorch ops.

    Attributes:
        ours, torch_ops: call i works on the i-th state; each has states of its own.
        reset: restores all states.
        gate: compares the results; raises Mismatch.
        copies: number of states of each.
        head_bytes: bytes of the reward head that a call reads; 0 without a head.
    """

    name: str
    ours: Callable[[int], object]
    torch_ops: Callable[[int], object]
    reset: Callable[[], object]
    gate: Callable[[], object]
    copies: int
    head_bytes: int = 0


def rollback_case(sizes: LoopOpSizes, device: torch.device) -> LoopOpCase:
    """Every other slot rolls back its last step."""
    start = mid_step(sizes, device)
    sets = [PageSet(start) for _ in range(2 * sizes.copies)]
    keep = start.kv_len.clone()
    keep[:, ::2] -= STEP
    rest = _eager_arguments(start, device)
    kernel = _rollback_kernel(device)

    def ours(index: int) -> None:
        kernel(**sets[index].named(), keep=keep, tokens_per_page=TOKENS_PER_PAGE)

    def torch_ops(index: int) -> None:
        eager_ops.rollback(**sets[sizes.copies + index].padded(), keep=keep, **rest)

    def gate() -> None:
        wanted = PageSet(start, torch.device("cpu")).named()
        rollback_twin.rollback(**wanted, keep=keep.cpu(), tokens_per_page=TOKENS_PER_PAGE)
        for run, index, name in ((ours, 0, "ours"), (torch_ops, sizes.copies, "torch ops")):
            _reset(sets)
            run(0)
            require_equal(sets[index].named(), wanted, f"rollback, {name}")

    return LoopOpCase("rollback", ours, torch_ops, lambda: _reset(sets), gate, sizes.copies)


def reward_case(sizes: LoopOpSizes, device: torch.device, width: int, kind: str) -> LoopOpCase:
    """Rewards and decisions of hidden rows, on plain tensors."""
    head = _head(kind, width, device)
    heads = _cold(head, sizes.copies)
    num_slots = sizes.num_slots
    hidden = torch.randn(sizes.copies, num_slots, width, device=device).to(head.norm_weight.dtype)
    policy_kind = torch.arange(num_slots, dtype=torch.int32, device=device) % len(PolicyKind)
    real = torch.full((num_slots,), THRESHOLD, device=device)
    policy = (policy_kind, real, real, torch.rand(num_slots, device=device))
    found = {
        "reward": torch.full((num_slots,), torch.nan, device=device),
        "accept": torch.full((num_slots,), 9, dtype=torch.int32, device=device),
    }
    kernel = _reward_kernel(device)

    def ours(index: int) -> None:
        kernel(hidden[index], heads[index], *policy, **found)

    def torch_ops(index: int) -> tuple[Tensor, Tensor]:
        reward = eager_ops.rewards(hidden[index], heads[index])
        return reward, eager_ops.accepts(*policy[:3], reward, policy[3])

    def gate() -> None:
        ours(0)
        exact = rewards_twin(hidden[0].double(), _double(head))
        plain, _ = torch_ops(0)
        require_close(found["reward"], plain, exact, f"reward, {kind} head", num_terms=width)
        accepted = eager_ops.accepts(*policy[:3], found["reward"], policy[3])
        require_equal({"accept": found["accept"]}, {"accept": accepted}, f"accept, {kind} head")

    name = f"reward_accept, {kind} head, {width}"
    return LoopOpCase(name, ours, torch_ops, lambda: None, gate, sizes.copies, _num_bytes(head))


def score_case(sizes: LoopOpSizes, device: torch.device, width: int, kind: str) -> LoopOpCase:
    """The engine's op: reward, decision, commit or rollback, and log entry of every slot."""
    head = _head(kind, width, device)
    copies, num_slots = sizes.copies, sizes.num_slots
    heads = _cold(head, copies)
    start = mid_step(sizes, device)
    states = [copied(start) for _ in range(copies)]
    batch = scored_rows(start, device)
    hidden = _clear_rewards(num_slots, width, head, device)
    sets = [PageSet(start) for _ in range(copies)]
    cursors = [_cursors(start) for _ in range(copies)]
    drawn = torch.rand(num_slots, device=device)
    policy = (start.policy_kind, start.policy_a, start.policy_b, drawn)
    rest = _eager_arguments(start, device)
    scratch = ops.score_scratch(start, head)

    def ours(index: int) -> None:
        ops.score(states[index], batch, hidden, heads[index], TOKENS_PER_PAGE, scratch)

    def torch_ops(index: int) -> None:
        pages = sets[index].padded() | rest
        eager_ops.score(hidden, heads[index], policy, cursors[index], pages)

    def reset() -> None:
        _reset(sets)
        for state, cursor in zip(states, cursors, strict=True):
            restore(state, start)
            for name, value in cursor.items():
                value.copy_(getattr(start, name))

    def gate() -> None:
        reset()
        ours(0)
        torch_ops(0)
        wanted = copied(start, torch.device("cpu"))
        rows = moved(batch, torch.device("cpu"))
        score_twin(wanted, rows, hidden.cpu(), _on(head, "cpu"), TOKENS_PER_PAGE)
        names = ("phase", "length", "committed", "prm_length", "kv_len", "num_pages", "num_free")
        twin = {name: getattr(wanted, name) for name in names}
        require_equal({n: getattr(states[0], n) for n in names}, twin, f"score, {kind} head")
        eager = cursors[0] | sets[0].named()
        shared = {name: twin[name] for name in ("length", "committed", "kv_len", "num_free")}
        require_equal(eager, shared, f"score, {kind} head, torch ops")

    name = f"score, {kind} head, {width}"
    return LoopOpCase(name, ours, torch_ops, reset, gate, copies, _num_bytes(head))


def _reset(sets: list[PageSet]) -> None:
    for pages in sets:
        pages.restore()


def _clear_rewards(num_slots: int, width: int, head: RewardHead, device: torch.device) -> Tensor:
    """Hidden rows with rewards on both sides of the threshold, none close to it."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(64 * num_slots, width, generator=generator).to(device)
    rows = rows.to(head.norm_weight.dtype)
    reward = rewards_twin(rows, head)
    low, high = rows[reward < THRESHOLD - _MARGIN], rows[reward > THRESHOLD + _MARGIN]
    half = num_slots // 2
    return torch.cat([low[:half], high[: num_slots - half]]).contiguous()


def _head(kind: str, width: int, device: torch.device) -> RewardHead:
    generator = torch.Generator().manual_seed(3)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        values = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        return values.to(device, dtype)

    norm = torch.ones(width, dtype=dtype, device=device)
    if kind == "value":
        single = torch.float32
        return ValueHead(norm, _EPS, normal(1, width, dtype=single), normal(1, dtype=single) * 0)
    classes = 4 * normal(2, width)
    return TwoClassHead(norm, _EPS, normal(width, width), normal(width), classes, normal(2) * 0)


def _cold(head: RewardHead, copies: int) -> list[RewardHead]:
    """A head for every call, since a pass of the PRM drives its head out of the caches."""
    return [_changed(head, Tensor.clone) for _ in range(copies)]


def _num_bytes(head: RewardHead) -> int:
    values = [getattr(head, f.name) for f in fields(head)]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _on(head: RewardHead, device: str) -> RewardHead:
    return _changed(head, lambda tensor: tensor.to(device))


def _double(head: RewardHead) -> RewardHead:
    return _changed(head, Tensor.double)


def _changed(head: RewardHead, change: Callable[[Tensor], Tensor]) -> RewardHead:
    values = {f.name: getattr(head, f.name) for f in fields(head)}
    changed: dict[str, Any] = {n: change(v) for n, v in values.items() if isinstance(v, Tensor)}
    return replace(head, **changed)


def _cursors(state: SlotState) -> dict[str, Tensor]:
    names = ("length", "committed", "prm_length", "prm_committed")
    return {name: getattr(state, name).clone() for name in names}


def _eager_arguments(start: SlotState, device: torch.device) -> dict[str, Tensor]:
    columns = start.page_table.shape[2]
    return {
        "tokens_per_page": eager_ops.as_column(TOKENS_PER_PAGE, device),
        "column": torch.arange(columns, dtype=torch.int32, device=device),
    }


def _rollback_kernel(device: torch.device) -> Callable[..., None]:
    if not triton_support.runs_on(torch.empty(0, device=device)):
        return rollback_twin.rollback
    from rsd_kernels.rollback.kernel import rollback

    return rollback


def _reward_kernel(device: torch.device) -> Callable[..., None]:
    if not triton_support.runs_on(torch.empty(0, device=device)):
        return reward_twin.reward_accept
    from rsd_kernels.reward.accept import reward_accept

    return reward_accept
