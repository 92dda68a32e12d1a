"""Reward-Guided Speculative Decoding as a program (Liao et al., ICML 2025, Algorithm 1).

    repeat
        the draft writes one step
        the PRM scores that step, r in [0, 1]
        accept with probability w(r)
        if rejected: roll back the draft's step; the target writes this step, kept unscored
    until a kept step ends with an end-of-text token, or a limit is reached

One tick is one pass of one role over the slots that wait for it, so every slot is in its own
phase and none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from rsd_engine.loop.program import Block, Call, Switch, While
from rsd_kernels import ops
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import ANY_ROWS, SlotState
from rsd_kernels.state.tables import MergeTables, StepTables

Forward = Callable[[RowBatch], None]
"""Reads the rows of a pass. A writer leaves `Loop.logits`, the PRM what `Loop.score` reads."""


@dataclass(frozen=True)
class Loop:
    """Everything the program is made of."""

    state: SlotState
    batch: RowBatch
    tables: StepTables
    merges: MergeTables | None  # None: the host writes the PRM's tokens, through text
    tokens_per_page: tuple[int, int, int]
    forwards: dict[Role, Forward]
    score: Callable[[RowBatch], None] | None  # accepts or rejects the steps just read, by the PRM
    logits: Tensor  # [B, V] float32: ids that may be sampled, no padded rows
    rule: BatchingRule = BatchingRule.MOST_READY  # the order of passes; results do not depend on it

    @cached_property
    def sample_scratch(self) -> SampleScratch | None:
        """One for all bodies: they never run at the same time."""
        return ops.sample_scratch(self.state, self.logits.shape[1])

    @cached_property
    def bridge_scratch(self) -> Tensor | None:
        """One for all bodies, likewise."""
        return ops.bridge_scratch(self.state)


def build_program(loop: Loop) -> Block:
    """The tree that every executor runs: a body for each role and number of rows."""
    state = loop.state
    schedule = Call(
        "schedule",
        partial(ops.schedule, state, loop.batch, loop.tokens_per_page, loop.rule),
        sets=(state.running, state.pass_body),
    )
    buckets = state.row_buckets.tolist()  # host read: once, when the program is built
    bodies = tuple(_body(loop, role, rows) for role in Role for rows in buckets)
    return (While(state.running, (schedule, Switch(state.pass_body, bodies))),)


def _body(loop: Loop, role: Role, num_rows: int) -> Block:
    if role not in loop.forwards:
        return ()
    exact = num_rows == ANY_ROWS[0]
    most = loop.batch.num_rows if exact else num_rows
    rows = loop.batch.narrow(most, min(most, loop.batch.num_seqs))
    forward = partial(_forward_exactly if exact else _forward_padded, loop, role, rows)
    rest = _score(loop, rows) if role == Role.PRM else _write(loop, role, rows)
    return (
        Call(f"{role.name}.forward", forward),
        Call(f"{role.name}.advance", partial(ops.advance, loop.state, rows, role)),
        *rest,
    )


def _write(loop: Loop, role: Role, rows: RowBatch) -> Block:
    state, tables, logits = loop.state, loop.tables, loop.logits[: rows.num_seqs]
    bridge = (
        partial(ops.wait_for_host, state)
        if loop.merges is None
        else partial(ops.bridge, state, tables, loop.merges, loop.bridge_scratch)
    )
    sample_append = partial(
        ops.sample_append, state, rows, logits, tables, role, loop.sample_scratch
    )
    return (
        Call(f"{role.name}.sample_append", sample_append),
        Call(f"{role.name}.bridge", bridge),
        Call(f"{role.name}.end_step", partial(ops.end_step, state, loop.tokens_per_page)),
    )


def _score(loop: Loop, rows: RowBatch) -> Block:
    assert loop.score is not None
    return (Call("PRM.score", partial(loop.score, rows)),)


def _forward_padded(loop: Loop, role: Role, rows: RowBatch) -> None:
    """A graph reads a fixed number of rows."""
    loop.forwards[role](rows)


def _forward_exactly(loop: Loop, role: Role, rows: RowBatch) -> None:
    """Exactly the rows of this pass: on a CPU padding would cost arithmetic."""
    num_rows, num_seqs = int(loop.state.num_rows), int(loop.state.num_seqs)  # host read: CPU only
    loop.forwards[role](rows.narrow(num_rows, num_seqs))
