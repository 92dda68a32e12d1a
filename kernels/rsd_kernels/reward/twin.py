"""Rewards of hidden rows and what a policy decides by them, in plain PyTorch.

The op of the loop, which reads and writes its state, is in `loop_twin`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.linear.twin import linear
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.twin import rms_norm
from rsd_kernels.policy.formula import accept_probability
from rsd_kernels.reward.heads import ClassesHead, EnsembleHead, RewardHead, ValueHead


def rewards(
    hidden: Tensor,  # [S, hidden] before the final norm
    head: RewardHead,
) -> Tensor:
    """[S] float32 (float64 of float64): the reward of every row.

    Source: Skywork-o1-Open-PRM (value head), Zhang et al., 2025 (two-class head), Duan et al., 2025
    (ensemble).
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    normed = rms_norm(hidden, head.norm_weight, head.eps)
    if isinstance(head, ValueHead):
        score = linear(normed.to(head.weight.dtype), LinearWeight(head.weight, head.bias))
        return head.offset + head.scale * torch.sigmoid(score.squeeze(1).to(wide))
    if isinstance(head, EnsembleHead):
        return _mean_of_heads(normed.to(head.inner.dtype), head, wide)
    if isinstance(head, ClassesHead):
        return _value_of_classes(normed.to(head.weight.dtype), head, wide)
    inner = linear(normed, LinearWeight(head.inner, head.inner_bias)).relu_()
    scores = linear(inner, LinearWeight(head.classes, head.classes_bias))
    return torch.softmax(scores, dim=-1, dtype=wide)[:, 1]


def _value_of_classes(
    normed: Tensor,  # [S, hidden]
    head: ClassesHead,
    wide: torch.dtype,
) -> Tensor:
    shares = torch.softmax(linear(normed, LinearWeight(head.weight, head.bias)), -1, dtype=wide)
    values = head.values.to(wide)
    if head.greedy:
        return torch.where(shares.isnan().any(-1), torch.nan, values[shares.argmax(-1)])
    return shares @ values


def _mean_of_heads(
    normed: Tensor,  # [S, hidden]
    head: EnsembleHead,
    wide: torch.dtype,
) -> Tensor:
    rows = normed.expand(head.inner.shape[0], *normed.shape)
    inner = torch.baddbmm(head.inner_bias[:, None], rows, head.inner).relu_()
    middle = torch.baddbmm(head.middle_bias[:, None], inner, head.middle).relu_()
    scores = torch.baddbmm(head.out_bias[:, None], middle, head.out)
    return torch.sigmoid(scores.squeeze(2).to(wide)).mean(0)


def reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    head: RewardHead,
    policy_kind: Tensor,  # [S] int32, PolicyKind
    policy_a: Tensor,  # [S] float32
    policy_b: Tensor,  # [S] float32
    uniform: Tensor,  # [S] float32 in [0, 1): the draws
    *,
    reward: Tensor,  # [S] float32, written
    accept: Tensor,  # [S] int32, written: 1 = accepted
    scratch: Tensor | None = None,
) -> None:
    """Scores rows and accepts each with probability w(reward); see `accept_probability`.

    scratch: the kernel's alone.
    """
    reward.copy_(rewards(hidden, head))
    kinds, a, b = policy_kind.tolist(), policy_a.tolist(), policy_b.tolist()
    draws = uniform.tolist()
    for s, value in enumerate(reward.tolist()):
        accept[s] = int(draws[s] < accept_probability(kinds[s], a[s], b[s], value))
