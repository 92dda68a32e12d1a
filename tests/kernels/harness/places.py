"""The places of a pass that was put together by hand."""

from __future__ import annotations

from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState


def one_place_each(state: SlotState, batch: RowBatch) -> None:
    """A place behind the context of every complete sequence."""
    count = 0
    for s in range(int(state.num_seqs)):
        batch.seq_place[s] = count
        if int(batch.seq_complete[s]):
            slot = int(batch.seq_slot[s])
            batch.place_row_end[count] = batch.seq_start[s + 1]
            batch.place_slot[count] = slot
            batch.place_position[count] = state.length[slot]
            count += 1
    batch.seq_place[int(state.num_seqs) :] = count
    state.num_places.fill_(count)
