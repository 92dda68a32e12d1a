"""Rows of one slot's context, for passes that the host asks for between two launches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.enums import Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import pages_for


def take_pages_for(
    loop: Loop,
    slot: int,
    role: Role,
    num_tokens: int,
    make_room: Callable[[int, int], None] | None = None,
) -> None:
    """Gives a slot the pages that it lacks for `num_tokens` tokens of a model.

    make_room: called with their number and the slot; None: free pages are the caller's care.
    """
    state = loop.state
    missing = pages_for(num_tokens, loop.tokens_per_page[role]) - int(state.num_pages[role, slot])
    if missing > 0:
        if make_room is not None:
            make_room(missing, slot)
        take_pages(state, role, slot, missing)


def rows_of(loop: Loop, slot: int, role: Role, start: int, stop: int) -> RowBatch:
    """Tokens start:stop of the slot's context, each as a sequence that asks for its logits."""
    state, size = loop.state, loop.tokens_per_page[role]
    batch = RowBatch.allocate(stop - start, stop - start, state.length.device)
    position = torch.arange(start, stop, device=state.length.device)
    batch.token.copy_(state.tokens[slot, start:stop])
    batch.slot.fill_(slot)
    batch.position.copy_(position)
    batch.page.copy_(state.page_table[role, slot, position // size])
    batch.offset.copy_(position % size)
    batch.seq_slot.fill_(slot)
    batch.seq_start.copy_(torch.arange(stop - start + 1))
    batch.seq_kv_len.copy_(position + 1)
    batch.place_row_end.copy_(batch.seq_start[1:])
    batch.place_slot.fill_(slot)
    batch.place_position.copy_(position + 1)
    return batch
