"""Launches of device functions that kernels of the loop call, so that each can be checked alone."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from rsd_kernels.bridge.kernel import CHUNK, bridge_scratch, bridge_slot
from rsd_kernels.bridge.kernel import wait_for_host as waits_for_host
from rsd_kernels.end_step.kernel import STEP_CHUNK, end_steps
from rsd_kernels.launch import next_power_of_2
from rsd_kernels.state.args import check_state, merge_args, page_sizes, state_args, table_args
from rsd_kernels.state.enums import ConfidenceKind
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import MergeTables, StepTables


@triton.jit
def bridge_kernel(
    state: tl.tuple, tables: tl.tuple, merges: tl.tuple, words: tl.tensor, CHUNK: tl.constexpr
) -> None:
    bridge_slot(state, tables, merges, words, tl.program_id(0), CHUNK)


@triton.jit
def wait_for_host_kernel(state: tl.tuple) -> None:
    waits_for_host(state, tl.program_id(0))


@triton.jit
def end_step_kernel(
    state: tl.tuple,
    tokens_per_page: tl.tuple,
    CONFIDENCE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    b_slot = tl.arange(0, BLOCK_S)
    m_slot = b_slot < state.num_slots
    end_steps(state, b_slot, m_slot, tokens_per_page, True, CONFIDENCE, CHUNK)


def bridge(state: SlotState, tables: StepTables, merges: MergeTables) -> None:
    """The part of `write` that brings ended steps to the PRM's context, for every slot."""
    bridge_kernel[(state.num_slots,)](
        state_args(state), table_args(tables), merge_args(merges), bridge_scratch(state), CHUNK,
        num_warps=1,
    )  # fmt: skip


def wait_for_host(state: SlotState) -> None:
    """The part of `write` that leaves this to the host."""
    wait_for_host_kernel[(state.num_slots,)](state_args(state), num_warps=1)


def end_step(
    state: SlotState,
    tokens_per_page: Sequence[int],
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> None:
    """The part of `write` that deals with the steps that have ended."""
    check_state(state)
    end_step_kernel[(1,)](
        state_args(state), page_sizes(tokens_per_page), int(confidence),
        next_power_of_2(max(state.num_slots, 2)), STEP_CHUNK, num_warps=4,
    )  # fmt: skip
