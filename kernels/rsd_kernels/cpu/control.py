"""The loop ops by the CPU library, each with the arguments and the results of its twin.

An op takes the columns of the state as an array of addresses, which is made once, so a call costs
about a microsecond. What an op of the library cannot do it leaves to the twin: confidences of a
draft, logprobs, penalties, top-k, top-p and min-p.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd_kernels.bridge.twin import wait_for_host
from rsd_kernels.cpu import library as native
from rsd_kernels.cpu.library import Library
from rsd_kernels.end_step import twin as end_step_twin
from rsd_kernels.fork.columns import CONTEXTS, LOGPROBS, forked_columns
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward.heads import RewardHead
from rsd_kernels.reward.twin import rewards
from rsd_kernels.sample import twin as sample_twin
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.args import batch_args, merge_args, state_args, table_args
from rsd_kernels.state.columns import host, number, write_at
from rsd_kernels.state.enums import NOT_FINITE, ConfidenceKind, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import MergeTables, StepTables
from rsd_kernels.write.rules import WriteRules

Addresses = Any  # of the columns of one dataclass, an array as csrc/cpu/control/columns.h has it

_NOT_SAMPLED = -2  # RSD_CPU_NOT_SAMPLED of csrc/cpu/rsd_cpu.h
_ADDRESSES, _FORKED = "_rsd_addresses", "_rsd_forked"
# What forks copy of a slot's bytes: RSD_CPU_WHOLE and so on of csrc/cpu/rsd_cpu.h.
_WHOLE, _CONTEXT, _PRM_CONTEXT, _LOGPROBS = range(4)
_USED = dict(zip(CONTEXTS, (_CONTEXT, _PRM_CONTEXT), strict=True)) | dict.fromkeys(
    LOGPROBS, _LOGPROBS
)


def suits(state: SlotState) -> bool:
    """Whether the library is there and can work on this state."""
    return state.length.is_cpu and native.load() is not None


def guess(state: SlotState) -> None:
    """See `guess.twin`."""
    _library().guess(_slots(state))


def schedule(
    state: SlotState,
    batch: RowBatch,
    tokens_per_page: tuple[int, int, int],
    rule: BatchingRule = BatchingRule.MOST_READY,
    prm_kv: Role = Role.PRM,
) -> None:
    """See `schedule.twin`."""
    _library().schedule(_slots(state), _rows(batch), _pages(tokens_per_page), rule, prm_kv)


def advance(state: SlotState, batch: RowBatch, role: Role, prm_kv: Role = Role.PRM) -> None:
    """See `schedule.twin`."""
    _library().advance(_slots(state), _rows(batch), role, prm_kv)


def sample_append(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,  # [M, V] float32, only ids that may be sampled; overwritten
    tables: StepTables,
    role: int,
    scratch: SampleScratch | None = None,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    *,
    verifies: bool = False,
) -> None:
    """See `sample.twin`."""
    library, slots, rows = _library(), _slots(state), _rows(batch)
    if confidence or logits.dtype != torch.float32 or not logits.is_contiguous():
        sample_twin.sample(state, batch, logits, role, confidence)
    elif library.sample(slots, rows, logits.data_ptr(), logits.shape[1], role):
        _sample_left(state, batch, logits, role)
    num_ids = tables.token_start.shape[0] - 1
    library.append(slots, rows, _addresses(tables, table_args), num_ids, role)


def _sample_left(state: SlotState, batch: RowBatch, logits: Tensor, role: int) -> None:
    """Draws by the twin where the library did not."""
    tokens = host(batch.place_token)[: number(state.num_places)]
    for p in (int(place) for place in np.flatnonzero(tokens == _NOT_SAMPLED)):
        token, row = NOT_FINITE, logits[p : p + 1]
        if sample_twin.finite_rows(row)[0]:
            slot, position = number(batch.place_slot, p), number(batch.place_position, p)
            token = sample_twin.sample_place(state, slot, position, row[0], role)
        write_at(batch.place_token, p, token)


def write(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,  # [M, V] float32, only ids that may be sampled; overwritten
    role: Role,
    rules: WriteRules,
    scratch: SampleScratch | None = None,
    words: Tensor | None = None,
) -> None:
    """See `write.twin`."""
    advance(state, batch, role)
    sample_append(state, batch, logits, rules.tables, role, confidence=rules.measured(role))
    if not rules.confidence and rules.merges is None:
        wait_for_host(state)
    elif not rules.confidence and rules.merges is not None:
        bridge(state, rules.tables, rules.merges)
    end_step(state, rules.tokens_per_page, rules.confidence)
    if rules.ends:
        retokenise(state, rules.ends.tables, rules.ends.merges)


def bridge(
    state: SlotState, tables: StepTables, merges: MergeTables, scratch: Tensor | None = None
) -> None:
    """See `bridge.twin`."""
    of_tables, of_merges = _addresses(tables, table_args), _addresses(merges, merge_args)
    _library().bridge(_slots(state), of_tables, of_merges)


def retokenise(
    state: SlotState, tables: StepTables, merges: MergeTables | None, words: Tensor | None = None
) -> None:
    """See `retokenise.twin`."""
    of_merges = None if merges is None else _addresses(merges, merge_args)
    _library().retokenise(_slots(state), _addresses(tables, table_args), of_merges)


def end_step(
    state: SlotState,
    tokens_per_page: tuple[int, int, int],
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> None:
    """See `end_step.twin`."""
    if confidence:
        end_step_twin.end_step(state, tokens_per_page, confidence)
    else:
        _library().end_step(_slots(state), _pages(tokens_per_page))


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
    """See `reward.loop_twin`."""
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
    """See `reward.loop_twin`."""
    advance(state, batch, Role.PRM, prm_kv)
    given, sizes = rewards.float(), _pages(tokens_per_page)  # float64 of a float64 model
    _library().decide(_slots(state), _rows(batch), given.data_ptr(), sizes)
    if ends:
        retokenise(state, ends.tables, ends.merges)


def fork(
    state: SlotState,
    pages: Tensor,  # [N, page_bytes] uint8: the pool
    source: int,
    targets: Sequence[int],
    tokens_per_page: Sequence[int],
) -> None:
    """See `fork.twin`."""
    library, slots, sizes = _library(), _slots(state), _pages(tuple(tokens_per_page))
    columns, pool = _forked(state), _array("the pool", [pages, pages.shape[1]])
    for target in targets:
        library.fork(slots, columns, pool, sizes, len(forked_columns()), source, target)


@cache
def _library() -> Library:
    library = native.load()
    if library is None:
        raise RuntimeError(f"the CPU library is {native.status()}")
    return library


@cache
def _pages(tokens_per_page: tuple[int, int, int]) -> Addresses:
    return (ctypes.c_int64 * len(tokens_per_page))(*tokens_per_page)


def _slots(state: SlotState) -> Addresses:
    return _addresses(state, state_args)


def _rows(batch: RowBatch) -> Addresses:
    return _addresses(batch, batch_args)


def _addresses(columns: Any, members: Callable[[Any], Sequence[Tensor | int]]) -> Addresses:
    """Addresses and sizes, kept with the columns: tensors of a state or a pass never move."""
    kept = columns.__dict__.get(_ADDRESSES)
    if kept is None:
        kept = columns.__dict__[_ADDRESSES] = _array(type(columns).__name__, members(columns))
    return kept


def _forked(state: SlotState) -> Addresses:
    """What forks get, as RsdForkedColumn of csrc/cpu/rsd_cpu.h has it, kept like the others."""
    kept = state.__dict__.get(_FORKED)
    if kept is None:
        kept = state.__dict__[_FORKED] = _array("SlotState", [*_forked_members(state)])
    return kept


def _forked_members(state: SlotState) -> Iterator[Tensor | int]:
    for name in forked_columns():
        column = getattr(state, name)
        yield from (column, column[0].nbytes, _USED.get(name, _WHOLE))


def _array(name: str, members: Sequence[Tensor | int]) -> Addresses:
    for tensor in members:
        if isinstance(tensor, Tensor) and not (tensor.is_cpu and tensor.is_contiguous()):
            raise ValueError(
                f"a tensor of {name} is on {tensor.device} or not contiguous; ops of "
                "the CPU library need all of them contiguous and on the CPU"
            )
    numbers = [m.data_ptr() if isinstance(m, Tensor) else m for m in members]
    return (ctypes.c_int64 * len(numbers))(*numbers)
