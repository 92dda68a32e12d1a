"""Forward ops, reward scoring and rollback as `torch.ops.rsd.*`: for torch.compile, other stacks.

    import rsd_kernels.torch_ops
    torch.ops.rsd.paged_attention(q, k_pages, v_pages, ...)

K and V may be any view [num_pages, tokens_per_page, num_kv_heads, head_dim] whose last dimension is
contiguous. Arguments are those of the twins, except that a weight is passed as matrix and bias. The
engine uses `rsd_kernels.model_ops` instead: a registered op costs a few microseconds more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.launch import runs_on
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.model_ops import model_ops
from rsd_kernels.namespace import NAMESPACE
from rsd_kernels.reward import twin as reward_twin
from rsd_kernels.reward.heads import EnsembleHead, RewardHead, TwoClassHead, ValueHead
from rsd_kernels.rollback import twin as rollback_twin
from rsd_kernels.state.rows import RowBatch

_library = torch.library.Library(NAMESPACE, "DEF")


def register(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Defines an op: `function` computes it on CPU and CUDA, `fake` only allocates its results."""
    _library.define(schema)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        _library.impl(name, function, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def _linear(
    x: Tensor,  # [n, K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    residual: Tensor | None = None,  # [n, N]
) -> Tensor:
    out = _linear_fake(x, weight)
    model_ops(x).linear(x, LinearWeight(weight, bias), residual=residual, out=out)
    return out


def _linear_fake(x: Tensor, weight: Tensor, *others: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _norm_linear(
    x: Tensor,  # [n, K]
    norm: Tensor,  # [K]
    eps: float,
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
) -> Tensor:
    out = _norm_linear_fake(x, norm, eps, weight)
    normed = x.new_empty(x.shape)
    model_ops(x).norm_linear(x, norm, eps, LinearWeight(weight, bias), normed=normed, out=out)
    return out


def _norm_linear_fake(
    x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _norm_gate_up(
    x: Tensor,  # [n, K]
    norm: Tensor,  # [K]
    eps: float,
    weight: Tensor,  # [2 * N, K]
    bias: Tensor | None = None,  # [2 * N]
    gelu: bool = False,
) -> Tensor:
    out = _norm_gate_up_fake(x, norm, eps, weight)
    scratch = {"normed": x.new_empty(x.shape), "gate_up": _linear_fake(x, weight)}
    given = LinearWeight(weight, bias)
    model_ops(x).norm_gate_up(x, norm, eps, given, gelu=gelu, **scratch, out=out)
    return out


def _norm_gate_up_fake(x: Tensor, norm: Tensor, eps: float, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


def _rope_kv_write(
    qkv: Tensor,  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v; q is changed in place
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [N] int32; rows with a negative page are padding
    offset: Tensor,  # [N] int32
    cos: Tensor,  # [N or num_positions, head_dim] fp32
    sin: Tensor,  # [N or num_positions, head_dim] fp32
    position: Tensor | None = None,  # [N] int32
    q_norm: Tensor | None = None,  # [head_dim]
    k_norm: Tensor | None = None,  # [head_dim]
    eps: float = 0.0,
) -> None:
    model_ops(qkv).rope_kv_write(
        qkv, k_pages, v_pages, page, offset, cos, sin,
        position=position, q_norm=q_norm, k_norm=k_norm, eps=eps,
    )  # fmt: skip


def _rope_kv_write_fake(qkv: Tensor, *others: Any) -> None:
    """The op writes to its arguments and returns nothing."""


def _paged_attention(
    q: Tensor,  # [N, num_q_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    seq_slot: Tensor,  # [S] int32: row of the page table
    seq_start: Tensor,  # [S + 1] int32: rows seq_start[s]:seq_start[s + 1] are sequence s
    seq_kv_len: Tensor,  # [S] int32: tokens the last row of sequence s attends to
    page_table: Tensor,  # [B, P] int32
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    ops = model_ops(q)
    others = {field.name: seq_slot[:0] for field in fields(RowBatch)}
    here = {"seq_slot": seq_slot, "seq_start": seq_start, "seq_kv_len": seq_kv_len}
    batch = RowBatch(**others | here)
    key_map = ops.attention_map(batch, page_table, k_pages.shape[1], sliding_window, q.dtype, None)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)  # for rows of no sequence
    ops.paged_attention(q, k_pages, v_pages, key_map, scale=scale, out=out)
    return out


def _paged_attention_fake(q: Tensor, *others: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32: a stack, valid up to num_free
    num_free: Tensor,  # [1] int32
    page_owners: Tensor,  # [N] int32: page tables that name a page
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Sequence[int],  # R values
) -> None:
    if runs_on(kv_len):
        from rsd_kernels.rollback.kernel import rollback
    else:
        rollback = rollback_twin.rollback
    rollback(
        kv_len, num_pages, page_table, free_pages, num_free, page_owners, keep, tokens_per_page
    )


def _rollback_fake(kv_len: Tensor, *others: Any) -> None:
    """The op writes to its arguments and returns nothing."""


def _reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    head: RewardHead,
    policy_kind: Tensor,  # [S] int32, PolicyKind
    policy_a: Tensor,  # [S] float32
    policy_b: Tensor,  # [S] float32
    uniform: Tensor,  # [S] float32 in [0, 1): the draws
) -> tuple[Tensor, Tensor]:
    """Rewards [S] float32, and [S] int32: 1 where the step is accepted."""
    reward, accept = _reward_accept_fake(hidden)
    if runs_on(hidden):
        from rsd_kernels.reward.accept import reward_accept
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


def _ensemble_reward_accept(
    hidden: Tensor,  # [S, hidden] before the final norm
    norm_weight: Tensor,  # [hidden]
    eps: float,
    inner: Tensor,  # [heads, hidden, units]
    inner_bias: Tensor,  # [heads, units]
    middle: Tensor,  # [heads, units, units]
    middle_bias: Tensor,  # [heads, units]
    out: Tensor,  # [heads, units, 1]
    out_bias: Tensor,  # [heads, 1]
    *policy: Tensor,
) -> tuple[Tensor, Tensor]:
    weights = (inner, inner_bias, middle, middle_bias, out, out_bias)
    return _reward_accept(hidden, EnsembleHead(norm_weight, eps, *weights), *policy)


_POLICY = "Tensor policy_kind, Tensor policy_a, Tensor policy_b, Tensor uniform"

register(
    "linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? residual=None) -> Tensor",
    _linear,
    _linear_fake,
)
register(
    "norm_linear(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias=None) -> Tensor",
    _norm_linear,
    _norm_linear_fake,
)
register(
    "norm_gate_up(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias=None, "
    "bool gelu=False) -> Tensor",
    _norm_gate_up,
    _norm_gate_up_fake,
)
register(
    "rope_kv_write(Tensor(a!) qkv, Tensor(b!) k_pages, Tensor(c!) v_pages, Tensor page, "
    "Tensor offset, Tensor cos, Tensor sin, Tensor? position=None, Tensor? q_norm=None, "
    "Tensor? k_norm=None, float eps=0.0) -> ()",
    _rope_kv_write,
    _rope_kv_write_fake,
)
register(
    "paged_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor seq_slot, "
    "Tensor seq_start, Tensor seq_kv_len, Tensor page_table, float scale, "
    "int? sliding_window=None) -> Tensor",
    _paged_attention,
    _paged_attention_fake,
)
register(
    "rollback(Tensor(a!) kv_len, Tensor(b!) num_pages, Tensor page_table, "
    "Tensor(c!) free_pages, Tensor(d!) num_free, Tensor(e!) page_owners, Tensor keep, "
    "int[] tokens_per_page) -> ()",
    _rollback,
    _rollback_fake,
)
register(
    "value_reward_accept(Tensor hidden, Tensor norm_weight, float eps, Tensor weight, "
    f"Tensor bias, {_POLICY}) -> (Tensor, Tensor)",
    _value_reward_accept,
    _reward_accept_fake,
)
register(
    "two_class_reward_accept(Tensor hidden, Tensor norm_weight, float eps, Tensor inner, "
    f"Tensor inner_bias, Tensor classes, Tensor classes_bias, {_POLICY}) -> (Tensor, Tensor)",
    _two_class_reward_accept,
    _reward_accept_fake,
)
register(
    "ensemble_reward_accept(Tensor hidden, Tensor norm_weight, float eps, Tensor inner, "
    "Tensor inner_bias, Tensor middle, Tensor middle_bias, Tensor out, Tensor out_bias, "
    f"{_POLICY}) -> (Tensor, Tensor)",
    _ensemble_reward_accept,
    _reward_accept_fake,
)
