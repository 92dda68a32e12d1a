"""Reward-Guided Speculative Decoding as a program (Liao et al., ICML 2025, Algorithm 1).

    repeat
        the draft writes one step
        the PRM scores that step, r in [0, 1]
        accept with probability w(r)
        if rejected: forget the draft's step; the target writes this step, kept unscored
    until a kept step ends with an end-of-text token, or a limit is reached

One tick is one pass of one role over the slots that wait for it, so every slot is in its own
phase and none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from rsd_engine.loop.program import Block, Call, Switch, While
from rsd_kernels import ops
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.slot_state import Role, SlotState
from rsd_kernels.step_tables import StepTables
from rsd_kernels.tail_tables import TailTables

Forward = Callable[[RowBatch, Tensor], None]
"""Reads the rows of a pass and writes one result a sequence: logits [S, V] or rewards [S]."""


@dataclass(frozen=True)
class Loop:
    """Everything the program is made of."""

    state: SlotState
    batch: RowBatch
    tables: StepTables
    tail: TailTables | None  # None: the PRM's row is written by the host, through text
    tokens_per_page: tuple[int, int, int]
    forwards: dict[Role, Forward]
    logits: Tensor  # [B, V rows] float32
    num_ids: int  # V: ids that may be sampled, no padded rows
    rewards: Tensor  # [B] float32


def build_program(loop: Loop) -> Block:
    """The tree that every executor runs."""
    state = loop.state
    plan = Call("plan", partial(ops.plan, state, loop.batch, loop.tokens_per_page))
    bodies = (
        _writer_body(loop, Role.DRAFT),
        _writer_body(loop, Role.TARGET),
        _scorer_body(loop),
    )
    return (While(state.running, (plan, Switch(state.pass_role, bodies))),)


def _writer_body(loop: Loop, role: Role) -> Block:
    if role not in loop.forwards:
        return ()
    state, tables, rows = loop.state, loop.tables, partial(_rows, loop)
    bridge = (
        partial(ops.wait_for_host, state)
        if loop.tail is None
        else partial(ops.bridge, state, tables, loop.tail)
    )

    def logits() -> Tensor:
        return loop.logits[: rows().num_seqs, : loop.num_ids]

    return (
        Call(f"{role.name}.forward", lambda: loop.forwards[role](rows(), loop.logits)),
        Call(f"{role.name}.advance", lambda: ops.advance(state, rows(), role)),
        Call(f"{role.name}.sample", lambda: ops.sample(state, rows(), logits(), role)),
        Call(f"{role.name}.append", lambda: ops.append(state, rows(), tables, role)),
        Call(f"{role.name}.bridge", bridge),
        Call(f"{role.name}.settle", partial(ops.settle, state, loop.tokens_per_page)),
    )


def _scorer_body(loop: Loop) -> Block:
    if Role.PRM not in loop.forwards:
        return ()
    state, rows = loop.state, partial(_rows, loop)
    return (
        Call("PRM.forward", lambda: loop.forwards[Role.PRM](rows(), loop.rewards)),
        Call("PRM.advance", lambda: ops.advance(state, rows(), Role.PRM)),
        Call(
            "PRM.decide",
            lambda: ops.decide(state, rows(), loop.rewards, loop.tokens_per_page),
        ),
    )


def _rows(loop: Loop) -> RowBatch:
    """Exactly the rows of this pass: on a CPU padding would cost arithmetic."""
    return loop.batch.narrow(int(loop.state.num_rows), int(loop.state.num_seqs))
