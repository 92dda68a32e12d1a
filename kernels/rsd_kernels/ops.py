"""The op surface the engine calls: one name an op, Triton where the state is on a CUDA device.

Every op has a plain-PyTorch twin in `rsd_kernels.reference`, which runs on any device. Triton is
imported at the first call that needs it, so never on a CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, ParamSpec

import torch
from torch import Tensor

from rsd_kernels import triton_support
from rsd_kernels.reference import bridge as bridge_twin
from rsd_kernels.reference import pages as pages_twin
from rsd_kernels.reference import plan as plan_twin
from rsd_kernels.reference import reward as reward_twin
from rsd_kernels.reference import sample_append as sample_append_twin
from rsd_kernels.reference import settle as settle_twin
from rsd_kernels.reference.bridge import write_prm_step
from rsd_kernels.reward_heads import RewardHead
from rsd_kernels.slot_state import SlotState

__all__ = [
    "advance",
    "bridge",
    "decide",
    "plan",
    "sample_append",
    "score",
    "score_scratch",
    "settle",
    "settle_slot",
    "truncate_kv",
    "wait_for_host",
    "write_prm_step",
]

P = ParamSpec("P")


def _op(twin: Callable[P, None], module: str) -> Callable[P, None]:
    """The twin, or the launcher of its name in `module`, by where the state (argument 0) is."""

    @functools.wraps(twin)
    def op(*args: P.args, **kwargs: P.kwargs) -> None:
        state: Any = args[0]
        if triton_support.runs_on(state.length):
            getattr(import_module(f"rsd_kernels.{module}"), twin.__name__)(*args, **kwargs)
        else:
            twin(*args, **kwargs)

    return op


plan = _op(plan_twin.plan, "plan")
advance = _op(plan_twin.advance, "plan")
sample_append = _op(sample_append_twin.sample_append, "sample_append")
bridge = _op(bridge_twin.bridge, "bridge")
wait_for_host = _op(bridge_twin.wait_for_host, "bridge")
settle = _op(settle_twin.settle, "settle")
settle_slot = _op(settle_twin.settle_slot, "settle")
decide = _op(settle_twin.decide, "settle")
score = _op(reward_twin.score, "reward")
truncate_kv = _op(pages_twin.truncate_kv, "rollback")


def score_scratch(state: SlotState, head: RewardHead) -> Tensor:
    """What `score` needs for a pass over every slot, float32; empty where the twin runs."""
    size = 0
    if triton_support.runs_on(state.length):
        from rsd_kernels.reward_scores import scratch_shape

        size = math.prod(scratch_shape(head, state.num_slots))
    return torch.empty(size, dtype=torch.float32, device=state.length.device)
