"""Reward, decision and rollback in PyTorch ops, as an engine without kernels would write them.

They are vectorised and never read on the host, so each op costs one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.reward.heads import RewardHead, TwoClassHead, ValueHead


def rewards(hidden: Tensor, head: RewardHead) -> Tensor:
    """[S] fp32 of hidden rows [S, hidden] before the final norm."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + head.eps)
    normed = (wide * scale * head.norm_weight).to(hidden.dtype)
    if isinstance(head, ValueHead):
        return torch.sigmoid(linear(normed.to(head.weight.dtype), head.weight, head.bias)[:, 0])
    assert isinstance(head, TwoClassHead)
    inner = torch.relu(linear(normed, head.inner, head.inner_bias))
    scores = linear(inner, head.classes, head.classes_bias)
    return torch.softmax(scores.float(), dim=-1)[:, 1]


def accepts(
    kind: Tensor,  # [S] int32, PolicyKind
    a: Tensor,  # [S] fp32
    b: Tensor,  # [S] fp32
    reward: Tensor,  # [S] fp32
    uniform: Tensor,  # [S] fp32
) -> Tensor:
    """[S] int32: 1 where the draw is below w(reward)."""
    weights = {
        PolicyKind.CONSTANT: a,
        PolicyKind.THRESHOLD: (reward >= a).float(),
        PolicyKind.CLIP: reward.clamp(0, 1),
        PolicyKind.SIGMOIDAL: (reward / (1 + reward)).clamp(min=0),
        PolicyKind.LOGISTIC: torch.sigmoid(a * (reward - b)),
    }
    probability = torch.zeros_like(reward)
    for number, weight in weights.items():
        probability = torch.where(kind == int(number), weight, probability)
    return ((uniform < probability) & ~reward.isnan()).int()


def rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N + 1] int32: one place more than the stack, for what is not returned
    num_free: Tensor,  # [1] int32
    page_owners: Tensor,  # [N] int32
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Tensor,  # [R, 1] int32
    column: Tensor,  # [P] int32: 0, 1, ..
) -> None:
    """Rolls back in place; leaves the same stack of free pages as `rsd_kernels.rollback.twin`.

    At most one of those that own a page may give it up.
    """
    tokens = torch.minimum(kv_len, keep)
    needed = (tokens + tokens_per_page - 1) // tokens_per_page
    kept = torch.minimum(num_pages, needed)
    given_up = (column >= kept[..., None]) & (column < num_pages[..., None])
    table = page_table.long()
    page_owners.scatter_add_(0, table.flatten(), -given_up.flatten().int())
    freed = given_up & (page_owners[table] == 0)
    # The order of the stack: slot by slot, role by role, last page first.
    in_order = freed.transpose(0, 1).flip(2)
    place = in_order.flatten().cumsum(0, dtype=torch.int32).view(in_order.shape)
    place = num_free + place.flip(2).transpose(0, 1) - 1
    place = torch.where(freed, place, free_pages.shape[0] - 1)
    free_pages.scatter_(0, place.flatten().long(), page_table.flatten())
    num_pages.copy_(kept)
    kv_len.copy_(tokens)
    num_free.add_(freed.sum())


def as_column(values: Sequence[int], device: torch.device) -> Tensor:
    """[R, 1] int32."""
    return torch.tensor(values, dtype=torch.int32, device=device)[:, None]


def score(
    hidden: Tensor,  # [S, hidden] rows at the ends of the steps
    head: RewardHead,
    policy: tuple[Tensor, Tensor, Tensor, Tensor],  # kind, a, b, uniform: [S] each
    cursors: dict[str, Tensor],  # length, committed, prm_length, prm_committed: [S] each
    pages: dict[str, Tensor],  # arguments of `rollback` but `keep`
) -> None:
    """Scores, decides, and keeps or rolls back, without the draws and the log of the engine."""
    kind, a, b, uniform = policy
    accepted = accepts(kind, a, b, rewards(hidden, head), uniform) > 0
    for name in ("length", "prm_length"):
        end = name.replace("length", "committed")
        kept = torch.where(accepted, cursors[name], cursors[end])
        cursors[name].copy_(kept)
        cursors[end].copy_(kept)
    length, prm_length = cursors["committed"], cursors["prm_committed"]
    rollback(**pages, keep=torch.stack((length, length, prm_length)))
