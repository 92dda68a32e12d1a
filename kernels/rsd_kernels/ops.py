"""The loop ops: one function an op, for whatever device the state is on.

On a CUDA device it is a Triton kernel, on a CPU that of the CPU library, where the op has one and
the library is built, else the twin. Triton is imported at the first call that needs it, so never
on a CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, ParamSpec

import torch
from torch import Tensor

from rsd_kernels.bridge.twin import write_prm_step
from rsd_kernels.cpu import control
from rsd_kernels.end_step import twin as end_step_twin
from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.guess import twin as guess_twin
from rsd_kernels.launch import runs_on
from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.retokenise import twin as retokenise_twin
from rsd_kernels.retokenise.twin import replace_end
from rsd_kernels.reward import loop_twin as score_twin
from rsd_kernels.reward import twin as reward_twin
from rsd_kernels.reward.heads import RewardHead
from rsd_kernels.rollback import twin as rollback_twin
from rsd_kernels.sample import twin as sample_twin
from rsd_kernels.sample.append_twin import append_given
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.state.slots import SlotState
from rsd_kernels.write import twin as write_twin

__all__ = [
    "DrawKey",
    "append_given",
    "bridge_scratch",
    "end_slot_step",
    "fork",
    "guess",
    "replace_end",
    "retokenise",
    "rewards",
    "sample_append",
    "sample_scratch",
    "schedule",
    "score",
    "score_scratch",
    "truncate_kv",
    "uniform",
    "write",
    "write_prm_step",
]

P = ParamSpec("P")


def _op(
    twin: Callable[P, None], folder: str, by_library: Callable[P, None] | None = None
) -> Callable[P, None]:
    """The twin, or what stands for it on the device of argument 0, the state.

    folder: where the launcher of the twin's name is. by_library: the op of the CPU library.
    """

    @functools.wraps(twin)
    def op(*args: P.args, **kwargs: P.kwargs) -> None:
        state: Any = args[0]
        if runs_on(state.length):
            getattr(import_module(f"rsd_kernels.{folder}.kernel"), twin.__name__)(*args, **kwargs)
        elif by_library is not None and control.suits(state):
            by_library(*args, **kwargs)
        else:
            twin(*args, **kwargs)

    return op


guess = _op(guess_twin.guess, "guess", control.guess)
schedule = _op(schedule_twin.schedule, "schedule", control.schedule)
sample_append = _op(sample_twin.sample_append, "sample", control.sample_append)
write = _op(write_twin.write, "write", control.write)
end_slot_step = _op(end_step_twin.end_slot_step, "end_step")
score = _op(score_twin.score, "reward", control.score)
retokenise = _op(retokenise_twin.retokenise, "retokenise", control.retokenise)
truncate_kv = _op(rollback_twin.truncate_kv, "rollback")
fork = _op(fork_twin.fork, "fork", control.fork)


def rewards(hidden: Tensor, head: RewardHead) -> Tensor:
    """[S] float32: the rewards of hidden rows [S, hidden], which are before the final norm."""
    if not hidden.shape[0]:
        return hidden.new_empty(0, dtype=torch.float32)
    if not runs_on(hidden):
        return reward_twin.rewards(hidden, head)
    size, device = hidden.shape[:1], hidden.device
    reward, real = (torch.zeros(size, device=device) for _ in range(2))
    kind, accept = (torch.zeros(size, dtype=torch.int32, device=device) for _ in range(2))
    kernel = import_module("rsd_kernels.reward.accept")
    kernel.reward_accept(hidden, head, kind, real, real, real, reward=reward, accept=accept)
    return reward


def sample_scratch(state: SlotState, vocabulary: int, num_places: int) -> SampleScratch | None:
    """What `write` needs for `vocabulary` logits a place; None where the twin runs."""
    return SampleScratch.allocate(state, vocabulary, num_places) if runs_on(state.length) else None


def bridge_scratch(state: SlotState) -> Tensor | None:
    """What `write`, `score` and `retokenise` need for words; None where the twin runs."""
    if not runs_on(state.length):
        return None
    return import_module("rsd_kernels.bridge.kernel").bridge_scratch(state)


def score_scratch(state: SlotState, head: RewardHead) -> Tensor:
    """What `score` needs for a pass over every slot, float32; empty where the twin runs."""
    size = 0
    if runs_on(state.length):
        from rsd_kernels.reward.scores import scratch_shape

        size = math.prod(scratch_shape(head, state.num_slots))
    return torch.empty(size, dtype=torch.float32, device=state.length.device)
