"""`score` of the loop in plain PyTorch: rewards of a pass, and what becomes of the steps."""

from __future__ import annotations

from torch import Tensor

from rsd_kernels.end_step.twin import decide_step
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.retokenise.twin import retokenise
from rsd_kernels.reward.heads import RewardHead
from rsd_kernels.reward.twin import rewards
from rsd_kernels.schedule.twin import advance
from rsd_kernels.state.columns import host, number
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.tick_clock.twin import end_tick


def score(
    state: SlotState,
    batch: RowBatch,
    hidden: Tensor,  # [N, hidden] rows of the pass before the final norm
    head: RewardHead,
    tokens_per_page: tuple[int, int, int],
    scratch: Tensor | None = None,
    prm_kv: Role = Role.PRM,
    ends: EndRules | None = None,
    words: Tensor | None = None,
) -> None:
    """Counts what was read; accepts or rejects each step by the reward of its last row.

    A sequence is complete when the pass read its last pending row. scratch, words: the kernel's
    alone. prm_kv: whose K/V the pass has used. ends: by which the ends of accepted steps are
    settled; None: they stay as they were written.
    """
    row = batch.seq_start[1 : number(state.num_seqs) + 1] - 1
    decide(state, batch, rewards(hidden[row.long()], head), tokens_per_page, prm_kv, ends)


def decide(
    state: SlotState,
    batch: RowBatch,
    rewards: Tensor,  # [S] float32
    tokens_per_page: tuple[int, int, int],
    prm_kv: Role = Role.PRM,
    ends: EndRules | None = None,
) -> None:
    """The same with these rewards: accepts a step with probability w(reward), else rejects it."""
    advance(state, batch, Role.PRM, prm_kv)
    n = number(state.num_seqs)
    complete, scored = host(batch.seq_complete)[:n].tolist(), rewards[:n].tolist()
    for s, b in enumerate(host(batch.seq_slot)[:n].tolist()):
        if not complete[s]:
            continue
        decide_step(state, b, scored[s], tokens_per_page)
    end_tick(state)
    if ends:
        retokenise(state, ends.tables, ends.merges)
