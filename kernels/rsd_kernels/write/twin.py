"""What follows the forward of a writer's pass: six ops in turn, each with a twin of its own."""

from __future__ import annotations

from torch import Tensor

from rsd_kernels.bridge.twin import bridge, wait_for_host
from rsd_kernels.end_step.twin import end_step
from rsd_kernels.retokenise.twin import retokenise
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.sample.twin import sample_append
from rsd_kernels.schedule.twin import advance
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.write.rules import WriteRules


def write(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,  # [M, V] float32, only ids that may be sampled; overwritten
    role: Role,
    rules: WriteRules,
    scratch: SampleScratch | None = None,
    words: Tensor | None = None,
) -> None:
    """Counts what was read, draws a token at each place, appends it, and ends the steps that end.

    A step that ends goes to the PRM, or is kept (`end_step`), and its end is settled.

    scratch, words: for the kernels alone.
    """
    advance(state, batch, role)
    measured = rules.measured(role)
    sample_append(state, batch, logits, rules.tables, role, confidence=measured)
    if not rules.confidence and rules.merges is None:
        wait_for_host(state)
    elif not rules.confidence and rules.merges is not None:
        bridge(state, rules.tables, rules.merges)
    end_step(state, rules.tokens_per_page, rules.confidence)
    if rules.ends:
        retokenise(state, rules.ends.tables, rules.ends.merges)
