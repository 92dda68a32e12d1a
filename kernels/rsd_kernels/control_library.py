"""Reward scoring and rollback as ops for other stacks; `rsd_kernels.library` registers them.

On CUDA tensors the Triton kernels run, elsewhere the twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.reference import reward as reward_twin
from rsd_kernels.reference import rollback as rollback_twin
from rsd_kernels.reward_heads import RewardHead, TwoClassHead, ValueHead
from rsd_kernels.triton_support import runs_on


def _rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32: a stack, valid up to num_free
    num_free: Tensor,  # [1] int32
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Sequence[int],  # R values
) -> None:
    if runs_on(kv_len):
        from rsd_kernels.rollback import rollback
    else:
        rollback = rollback_twin.rollback
    rollback(kv_len, num_pages, page_table, free_pages, num_free, keep, tokens_per_page)


def _rollback_fake(kv_len: Tensor, *others: Any) -> None:
    """Changes its arguments, returns nothing."""


def _reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    head: RewardHead,
    policy_kind: Tensor,  # [S] int32, PolicyKind
    policy_a: Tensor,  # [S] float32
    policy_b: Tensor,  # [S] float32
    uniform: Tensor,  # [S] float32 in [0, 1): the draws
) -> tuple[Tensor, Tensor]:
    """Rewards [S] float32, and [S] int32 that is 1 where the step is accepted."""
    reward, accept = _reward_accept_fake(hidden)
    if runs_on(hidden):
        from rsd_kernels.reward_accept import reward_accept
    else:
        reward_accept = reward_twin.reward_accept
    reward_accept(
        hidden, head, policy_kind, policy_a, policy_b, uniform, reward=reward, accept=accept
    )
    return reward, accept


def _reward_accept_fake(hidden: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    reward = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return reward, hidden.new_empty(hidden.shape[0], dtype=torch.int32)


def _value_reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    norm_weight: Tensor,  # [hidden]
    eps: float,
    weight: Tensor,  # [1, hidden]
    bias: Tensor,  # [1]
    *policy: Tensor,
) -> tuple[Tensor, Tensor]:
    return _reward_accept(hidden, ValueHead(norm_weight, eps, weight, bias), *policy)


def _two_class_reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    norm_weight: Tensor,  # [hidden]
    eps: float,
    inner: Tensor,  # [inner, hidden]
    inner_bias: Tensor,  # [inner]
    classes: Tensor,  # [2, inner]
    classes_bias: Tensor,  # [2]
    *policy: Tensor,
) -> tuple[Tensor, Tensor]:
    head = TwoClassHead(norm_weight, eps, inner, inner_bias, classes, classes_bias)
    return _reward_accept(hidden, head, *policy)


_POLICY = "Tensor policy_kind, Tensor policy_a, Tensor policy_b, Tensor uniform"
CONTROL_OPS = (
    (
        "rollback(Tensor(a!) kv_len, Tensor(b!) num_pages, Tensor page_table, "
        "Tensor(c!) free_pages, Tensor(d!) num_free, Tensor keep, int[] tokens_per_page) -> ()",
        _rollback,
        _rollback_fake,
    ),
    (
        "value_reward_accept(Tensor hidden, Tensor norm_weight, float eps, Tensor weight, "
        f"Tensor bias, {_POLICY}) -> (Tensor, Tensor)",
        _value_reward_accept,
        _reward_accept_fake,
    ),
    (
        "two_class_reward_accept(Tensor hidden, Tensor norm_weight, float eps, Tensor inner, "
        f"Tensor inner_bias, Tensor classes, Tensor classes_bias, {_POLICY}) -> (Tensor, Tensor)",
        _two_class_reward_accept,
        _reward_accept_fake,
    ),
)
"""(schema, function, fake) of each op."""
