"""Sampling and append as one op: a token is appended as soon as it is drawn."""

from __future__ import annotations

from torch import Tensor

from rsd_kernels.reference.append import append
from rsd_kernels.reference.sample import sample
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.slot_state import SlotState
from rsd_kernels.step_tables import StepTables


def sample_append(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,  # [S, V] float32, only ids that may be sampled; overwritten
    tables: StepTables,
    role: int,
) -> None:
    """Draws a token for each complete sequence, adds it to the row and looks for the step's end.

    `next_token` is -1, and nothing is added, where the logits are not finite.
    """
    sample(state, batch, logits, role)
    append(state, batch, tables, role)
