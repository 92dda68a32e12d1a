"""Reward-Guided Speculative Decoding as a program (Liao et al., ICML 2025, Algorithm 1).

    repeat
        the draft writes one step
        the PRM scores that step, r in [0, 1]
        accept with probability w(r)
        if rejected: roll the draft's step back; the target writes this step, kept unscored
    until a kept step ends with an end-of-text token, or at the length limit

One tick is one pass of one role over the slots that wait for it: every slot is in its own phase,
and none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from torch import Tensor

from rsd_engine.loop.program import Block, Call, Switch, While
from rsd_kernels import ops
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.columns import number
from rsd_kernels.state.enums import ConfidenceKind, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import ANY_ROWS, SlotState
from rsd_kernels.state.tables import MergeTables, StepTables
from rsd_kernels.write.rules import WriteRules

# Sizes of passes whose views of the rows are kept: to make them takes as long as a small layer.
KEPT_VIEWS = 64

Forward = Callable[[RowBatch], None]
"""Reads the rows of a pass. A writer leaves its `Loop.logits`, the PRM what `Loop.score` reads."""
Score = Callable[[RowBatch, EndRules | None, Tensor | None], None]
"""Keeps or rejects the steps that the PRM has just read: given `Loop.ends`, and room for words."""


@dataclass(frozen=True)
class Loop:
    """Everything the program is made of."""

    state: SlotState
    batch: RowBatch
    tables: Mapping[Role, StepTables]  # of each writer's vocabulary; often the same
    merges: MergeTables | None  # None: steps go from model to model through text, on the host
    tokens_per_page: tuple[int, int, int]
    forwards: dict[Role, Forward]
    score: Score | None
    # of each writer: [places, vocabulary] float32, the ids that may be sampled; often the same
    logits: Mapping[Role, Tensor]
    pages: Tensor  # [N, page_bytes] uint8: the pool
    ends: EndRules | None = None  # how those of kept steps are read; None: as they were written
    rule: BatchingRule = BatchingRule.MOST_READY  # the order of passes; no result depends on it
    confidence: ConfidenceKind = ConfidenceKind.NONE  # by which steps are decided without a PRM
    prm_kv: Role = Role.PRM  # whose K/V the PRM's passes use; a writer's, if it scores its context

    @property
    def guesses(self) -> bool:
        """Whether a pass has places for guesses."""
        return self.batch.num_places > self.state.num_slots

    @cached_property
    def sample_scratch(self) -> Mapping[int, SampleScratch | None]:
        """By the number of logits; one for all bodies: they never run at the same time."""
        widths = {logits.shape[1] for logits in self.logits.values()}
        places = self.batch.num_places
        return {width: ops.sample_scratch(self.state, width, places) for width in widths}

    @cached_property
    def bridge_scratch(self) -> Tensor | None:
        """One for all bodies, likewise."""
        return ops.bridge_scratch(self.state)


def build_program(loop: Loop, row_buckets: Sequence[int] | None = None) -> Block:
    """The tree that every executor runs; it has a body for each role and number of rows.

    Args:
        loop: its parts.
        row_buckets: those of the state, if it has no memory that they could be read from.
    """
    state = loop.state
    if row_buckets is None:
        row_buckets = state.row_buckets.tolist()  # host read: once, when the program is built
    schedule = partial(
        ops.schedule, state, loop.batch, loop.tokens_per_page, loop.rule, loop.prm_kv
    )
    passes = tuple(_pass(loop, role, num_rows) for role in Role for num_rows in row_buckets)
    guess = (Call("guess", partial(ops.guess, state)),) if loop.guesses else ()
    tick = (
        *guess,
        Call("schedule", schedule, sets=(state.running, state.pass_body)),
        Switch(state.pass_body, passes),
    )
    return (While(state.running, tick),)


def _pass(loop: Loop, role: Role, num_rows: int) -> Block:
    """One pass of a role: its forward, and what its slots do next."""
    if role not in loop.forwards:
        return ()
    exact = num_rows == ANY_ROWS[0]
    most = loop.batch.num_rows if exact else num_rows
    seqs, places = (min(most, n) for n in (loop.batch.num_seqs, loop.batch.num_places))
    rows = loop.batch.narrow(most, seqs, places)
    forward = partial(_forward, loop, role, rows)
    if exact:
        narrow = lru_cache(maxsize=KEPT_VIEWS)(rows.narrow)
        forward = partial(_forward_in_use, loop, role, narrow)
    return (
        Call(f"{role.name}.forward", forward),
        *(_score(loop, rows) if role == Role.PRM else _write(loop, role, rows)),
    )


def _forward(loop: Loop, role: Role, rows: RowBatch) -> None:
    """Reads all of `rows`, as a graph must."""
    loop.forwards[role](rows)


def _forward_in_use(loop: Loop, role: Role, narrow: Callable[[int, int, int], RowBatch]) -> None:
    """Reads the rows in use alone: on a CPU padding costs."""
    rows, seqs, places = loop.state.num_rows, loop.state.num_seqs, loop.state.num_places
    loop.forwards[role](narrow(number(rows), number(seqs), number(places)))  # host read: on a CPU


def _write(loop: Loop, role: Role, rows: RowBatch) -> Block:
    """Samples a token of each slot. A step that ends goes to the PRM, or is kept."""
    logits, tables = loop.logits[role][: rows.num_places], loop.tables[role]
    keeps = role == Role.TARGET or loop.confidence != ConfidenceKind.NONE
    rules = WriteRules(
        tables, loop.merges, loop.tokens_per_page, loop.confidence, loop.guesses,
        ends=loop.ends if keeps else None,
    )  # fmt: skip
    scratch = loop.sample_scratch[logits.shape[1]]
    write = partial(
        ops.write, loop.state, rows, logits, role, rules, scratch, loop.bridge_scratch
    )  # fmt: skip
    return (Call(f"{role.name}.write", write),)


def _score(loop: Loop, rows: RowBatch) -> Block:
    """Scores the steps that were read; each is kept, or rolled back and rewritten."""
    assert loop.score is not None
    return (Call("PRM.score", partial(loop.score, rows, loop.ends, loop.bridge_scratch)),)
