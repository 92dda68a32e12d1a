"""States in which every slot waits for a decision, for the loop ops that `bench.control` times."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import NUM_ROLES, Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import StepTables

THRESHOLD = 0.5
STEP = 40  # tokens of the step that is decided
TOKENS_PER_PAGE = (32, 16, 32)  # Qwen2.5 1.5B, 7B, 1.5B


@dataclass(frozen=True)
class LoopOpSizes:
    """Sizes of the states: `real` on a GPU, `tiny` on a CPU.

    Attributes:
        num_columns: of the page table.
        length: tokens of a slot's context.
        widths: hidden sizes of PRMs.
        copies: states, each with a reward head of its own, that a run works on.
    """

    num_slots: int
    num_columns: int
    length: int
    widths: tuple[int, ...]
    copies: int

    @classmethod
    def real(cls, copies: int) -> LoopOpSizes:
        return cls(16, 256, 1024, (1536, 3584), copies)

    @classmethod
    def tiny(cls) -> LoopOpSizes:
        return cls(3, 16, 96, (24,), 2)


class PageSet:
    """A copy of a state's page table, cursors and stack of free pages, which can be restored."""

    NAMES = ("kv_len", "num_pages", "page_table", "free_pages", "num_free", "page_owners")

    def __init__(self, start: SlotState, device: torch.device | None = None) -> None:
        self._start = start
        self._tensors = {
            name: getattr(start, name).to(device or start.length.device, copy=True)
            for name in self.NAMES
        }
        stack = self._tensors["free_pages"]
        self._stack = torch.cat([stack, stack.new_zeros(1)])
        self._tensors["free_pages"] = self._stack[:-1]

    def named(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def padded(self) -> dict[str, Tensor]:
        """The tensors with one more place on the stack, as `eager_ops.rollback` takes them."""
        return self._tensors | {"free_pages": self._stack}

    def restore(self) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(getattr(self._start, name))


def empty_slots(sizes: LoopOpSizes, device: torch.device) -> SlotState:
    """Slots of these sizes, with no request."""
    num_slots, length, columns = sizes.num_slots, sizes.length, sizes.num_columns
    slot_sizes = SlotSizes(
        num_slots=num_slots,
        max_len=length + 64,
        prm_max_len=2 * length,
        pages_per_role=columns,
        num_pages=NUM_ROLES * num_slots * columns,
        log_words=num_slots * (length + 64) * 2,
    )
    return SlotState.allocate(slot_sizes, device)


def mid_step(sizes: LoopOpSizes, device: torch.device) -> SlotState:
    """Every slot has written a step, which the PRM has read, and waits for the decision."""
    num_slots, length = sizes.num_slots, sizes.length
    state = empty_slots(sizes, torch.device("cpu"))
    state.length.fill_(length)
    state.committed.fill_(length - STEP)
    state.prm_length.fill_(length)
    state.prm_keep.fill_(length)
    state.prm_committed.fill_(length - STEP)
    state.length_limit.fill_(length + 32)
    state.max_steps.fill_(100)
    state.phase.fill_(Phase.SCORE)
    state.active.fill_(1)
    state.num_logprobs.fill_(-1)
    state.stop_tokens.fill_(-1)
    state.policy_kind.fill_(PolicyKind.THRESHOLD)
    state.policy_a.fill_(THRESHOLD)
    state.kv_len.fill_(length)
    state.tick_cap.fill_(10**9)
    state.num_rows.fill_(num_slots)
    state.num_seqs.fill_(num_slots)
    free = int(state.num_free)
    for role, per_page in enumerate(TOKENS_PER_PAGE):
        held = -(-length // per_page)
        state.num_pages[role] = held
        taken = state.free_pages[free - num_slots * held : free]
        state.page_table[role, :, :held] = taken.view(num_slots, held)
        state.page_owners[taken.long()] = 1
        free -= num_slots * held
    state.num_free.fill_(free)
    return copied(state, device)


def scored_rows(state: SlotState, device: torch.device) -> RowBatch:
    """One row per slot, the last of its step, whose K/V the PRM has now."""
    num_slots = state.num_slots
    batch = RowBatch.allocate(num_slots, num_slots, device)
    batch.seq_slot.copy_(torch.arange(num_slots, device=device))
    batch.seq_start.copy_(torch.arange(num_slots + 1, device=device))
    batch.seq_kv_len.copy_(state.kv_len[Role.PRM])
    batch.seq_complete.fill_(1)
    return batch


def plain_tables(vocabulary: int, device: torch.device | None = None) -> StepTables:
    """Every token is the letter a."""

    def table(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return StepTables(
        token_byte=torch.full((vocabulary,), ord("a"), dtype=torch.uint8, device=device),
        token_start=torch.arange(vocabulary + 1, dtype=torch.int32, device=device),
        prefix_entry=torch.full((vocabulary,), -1, dtype=torch.int32, device=device),
        prefix_start=table(0),
        prefix_token=table(),
        prm_token=torch.arange(vocabulary, dtype=torch.int32, device=device),
        separator=table(0),
        before_step=table(),
        num_transient=0,
        as_written=0,
    )


def copied(state: SlotState, device: torch.device | None = None) -> SlotState:
    """A copy of a state, on the same device or another."""
    where = device or state.length.device
    return SlotState(
        **{f.name: getattr(state, f.name).to(where, copy=True) for f in fields(SlotState)}
    )


def restore(state: SlotState, start: SlotState) -> None:
    """Copies `start` into `state`."""
    for field in fields(SlotState):
        getattr(state, field.name).copy_(getattr(start, field.name))


def moved(batch: RowBatch, device: torch.device) -> RowBatch:
    """The rows on another device."""
    return RowBatch(**{f.name: getattr(batch, f.name).to(device) for f in fields(RowBatch)})
