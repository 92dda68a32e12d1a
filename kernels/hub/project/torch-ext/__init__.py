"""Kernels of reward-guided speculative decoding; their arguments stand in `torch_ops`."""

from . import torch_ops
from ._ops import ops
from .policy.formula import PolicyKind

linear = ops.linear
norm_linear = ops.norm_linear
norm_gate_up = ops.norm_gate_up
rope_kv_write = ops.rope_kv_write
paged_attention = ops.paged_attention
value_reward_accept = ops.value_reward_accept
two_class_reward_accept = ops.two_class_reward_accept
ensemble_reward_accept = ops.ensemble_reward_accept
rollback = ops.rollback

__all__ = [
    "PolicyKind",
    "ensemble_reward_accept",
    "linear",
    "norm_gate_up",
    "norm_linear",
    "paged_attention",
    "rollback",
    "rope_kv_write",
    "torch_ops",
    "two_class_reward_accept",
    "value_reward_accept",
]
