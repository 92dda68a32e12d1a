"""The state, a pass and the tables as one kernel argument each.

Triton takes named tuples of pointers and numbers, so the kernels of loop ops read like their twins
(`state.length`) and need no list of eighty arguments.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from rsd_kernels.launch import check_contiguous, check_devices, debugging
from rsd_kernels.state.debug import check_values
from rsd_kernels.state.enums import NUM_ROLES
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import MergeTables, StepTables

_STATE = tuple(f.name for f in fields(SlotState))
_BATCH = tuple(f.name for f in fields(RowBatch))
_TABLES = tuple(f.name for f in fields(StepTables))
_MERGES = tuple(f.name for f in fields(MergeTables))


def bundle(name: str, *members: str) -> Any:
    """A named tuple type of the caller's module: Triton passes each member as an argument."""
    # Named like this, values of it can be pickled.
    return namedtuple(name, members, module=sys._getframe(1).f_globals["__name__"])


StateArgs = bundle(
    "StateArgs",
    *_STATE,
    "num_slots",
    "max_len",
    "prm_max_len",
    "num_columns",
    "log_words",
    "num_buckets",
)
BatchArgs = bundle("BatchArgs", *_BATCH, "max_rows", "max_seqs", "max_places")
TableArgs = bundle("TableArgs", *_TABLES, "num_separators", "num_before")
MergeArgs = bundle("MergeArgs", *_MERGES, "num_merges")
PageSizes = bundle("PageSizes", "draft", "target", "prm")


def state_args(state: SlotState) -> Any:
    """Every column of the state, then its sizes."""
    return StateArgs(
        *(getattr(state, name) for name in _STATE),
        state.num_slots,
        state.tokens.shape[1],
        state.prm_tokens.shape[1],
        state.page_table.shape[2],
        state.log.shape[0],
        state.row_buckets.shape[0],
    )


def batch_args(batch: RowBatch) -> Any:
    """Every tensor of the pass, then how many rows, sequences and places it has room for."""
    return BatchArgs(
        *(getattr(batch, name) for name in _BATCH),
        batch.num_rows,
        batch.num_seqs,
        batch.num_places,
    )


def table_args(tables: StepTables) -> Any:
    """Every table of the vocabulary, then how many tokens stand behind and before a step."""
    return TableArgs(
        *(getattr(tables, name) for name in _TABLES),
        tables.separator.shape[0],
        tables.before_step.shape[0],
    )


def merge_args(merges: MergeTables) -> Any:
    """Every table of the merges, then how many there are."""
    return MergeArgs(*(getattr(merges, name) for name in _MERGES), merges.merge_pair.shape[0])


def page_sizes(tokens_per_page: Sequence[int]) -> Any:
    """Tokens a page holds, by role.

    Raises:
        ValueError: unless there is one positive number for each role.
    """
    if len(tokens_per_page) != NUM_ROLES or any(tokens < 1 for tokens in tokens_per_page):
        raise ValueError(
            f"tokens_per_page is {list(tokens_per_page)}; it must be {NUM_ROLES} positive "
            "numbers, one for each role"
        )
    return PageSizes(*tokens_per_page)


def check_state(state: SlotState, batch: RowBatch | None = None) -> None:
    """Raises ValueError unless all tensors are contiguous and on one device that runs Triton.

    With RSD_DEBUG_KERNELS=1 the cursors and pages of the state are checked too.
    """
    tensors: dict[str, Tensor] = {name: getattr(state, name) for name in _STATE}
    if batch is not None:
        tensors |= {f"batch.{name}": getattr(batch, name) for name in _BATCH}
    check_devices(**tensors)
    for name, tensor in tensors.items():
        check_contiguous(name, tensor)
    if debugging():
        check_values(state)


def check_tables(state: SlotState, tables: StepTables, merges: MergeTables | None = None) -> None:
    """Raises ValueError unless the tables are contiguous and on the device of the state."""
    found = {name: getattr(tables, name) for name in _TABLES}
    tensors: dict[str, Tensor] = {n: t for n, t in found.items() if isinstance(t, Tensor)}
    if merges is not None:
        tensors |= {f"merges.{name}": getattr(merges, name) for name in _MERGES}
    check_devices(length=state.length, **tensors)
    for name, tensor in tensors.items():
        check_contiguous(name, tensor)


def warps_for(num_lanes: int) -> int:
    """Warps for a program that copies a few words for each of `num_lanes` slots: none spills."""
    return 4 if num_lanes <= 16 else 8
