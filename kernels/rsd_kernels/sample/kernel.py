"""Draw a token at every place and append it, in two or three launches without a sort.

They are wide, with a program for each block of the vocabulary; what follows at a place from all its
blocks, the last of their programs to arrive does. What is drawn never depends on the sequences
beside it.

Twin: `rsd_kernels.sample.twin`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsd_kernels.launch import (
    Launch,
    all_registers,
    ceil_div,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
    next_power_of_2,
)
from rsd_kernels.sample.adjust import adjust_kernel
from rsd_kernels.sample.append import append_kernel
from rsd_kernels.sample.draw import draw_kernel
from rsd_kernels.sample.scratch import VOCABULARY_BLOCK, SampleScratch, scratch_args
from rsd_kernels.state.args import (
    batch_args,
    check_state,
    check_tables,
    state_args,
    table_args,
)
from rsd_kernels.state.enums import NUM_ROLES, ConfidenceKind, Purpose
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables

# Ids that a program looks at in a turn where it goes on alone: 16 warps hold them without spilling.
_SCAN_BLOCK = 2048
_WARPS = 16
_END_WARPS = 8  # where the last program to append deals with the ended steps of all slots
_NOISE_BLOCK = 4  # ids whose noise comes from one random block
# Sampling and append alone.
_NO_TICK: dict[str, Any] = {
    "merges": None, "words": None, "tokens_per_page": None, "end_tables": None, "end_merges": None,
    "DECIDES": 0, "BLOCK_S": 1, "CLOCK": False,
}  # fmt: skip


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
    """Adds what is drawn at each place to its context, and logprobs where asked; see the twin.

    scratch: allocated if it is not given. verifies: whether a sequence may have several places.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device, or
            `role` is not a role.
    """
    check_sampling(state, batch, logits, tables, role)
    if scratch is None:
        scratch = SampleScratch.allocate(state, logits.shape[1], batch.num_places)
    check_scratch(state, batch, logits, scratch)
    for launch in sample_append_launches(
        state, batch, logits, tables, role, scratch, confidence, verifies=verifies
    ):
        launch.run()


def check_sampling(
    state: SlotState, batch: RowBatch, logits: Tensor, tables: StepTables, role: int
) -> None:
    """Raises ValueError unless `sample_append` can take these."""
    check_state(state, batch)
    check_tables(state, tables)
    check_devices(length=state.length, logits=logits)
    check_dtype("logits", logits, torch.float32)
    check_last_contiguous("logits", logits)
    if batch.num_seqs > state.num_slots:
        raise ValueError(
            f"batch has room for {batch.num_seqs} sequences; allowed: at most {state.num_slots}, "
            "one for each slot"
        )
    if logits.dim() != 2 or logits.shape[0] < batch.num_places or logits.shape[1] == 0:
        raise ValueError(
            f"logits has shape {list(logits.shape)}; it must be [places, ids] with at least "
            f"{batch.num_places} places and one id"
        )
    if not 0 <= role < NUM_ROLES:
        raise ValueError(f"role is {role}; it must be 0 to {NUM_ROLES - 1}")


def check_scratch(
    state: SlotState, batch: RowBatch, logits: Tensor, scratch: SampleScratch
) -> None:
    """Raises ValueError unless the scratch has room for what is drawn."""
    blocks, places = ceil_div(logits.shape[1], VOCABULARY_BLOCK), scratch.block_max.shape[0]
    if places < batch.num_places:
        raise ValueError(
            f"scratch has room for {places} places; it must have room for {batch.num_places}"
        )
    check_shape("scratch.block_max", scratch.block_max, (places, blocks))
    check_shape("scratch.seen", scratch.seen, (places, state.tokens.shape[1]))
    check_shape("scratch.raw", scratch.raw, (places, logits.shape[1]))
    check_devices(length=state.length, scratch=scratch.seen)


def sample_append_launches(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,
    tables: StepTables,
    role: int,
    scratch: SampleScratch,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    *,
    verifies: bool = False,
    tick: dict[str, Any] = _NO_TICK,
) -> list[Launch]:
    """Penalties and greedy tokens; draws; append. Where every sequence has one place, the draw
    appends.

    tick: what the rest of a writer's tick takes, if the launches do that too (`write.kernel`).
    """
    vocabulary = logits.shape[1]
    blocks = ceil_div(vocabulary, VOCABULARY_BLOCK)
    args = {
        "state": state_args(state), "batch": batch_args(batch), "scratch": scratch_args(scratch),
        "logits": logits, "stride_logits": logits.stride(0), "vocabulary": vocabulary,
        "CONFIDENCE": int(confidence), "BLOCKS": next_power_of_2(blocks),
        "BLOCK": max(_NOISE_BLOCK, min(VOCABULARY_BLOCK, next_power_of_2(vocabulary))),
        "SCAN_BLOCK": min(_SCAN_BLOCK, next_power_of_2(vocabulary)),
    }  # fmt: skip
    in_loop = tick is not _NO_TICK
    adjust = args | {
        "role": int(role),
        "TICK": in_loop, "BLOCK_S": next_power_of_2(batch.num_seqs), "CLOCK": tick["CLOCK"],
    }  # fmt: skip
    appends = {"tables": table_args(tables), "role": int(role)}
    draw = args | appends | (_NO_TICK if verifies else tick) | {
        "purpose": int(Purpose.token_of(role)), "APPEND": not verifies,
        "ENDS": in_loop and not verifies,
    }  # fmt: skip
    grid = (batch.num_places, blocks)
    launches = [
        Launch(adjust_kernel, grid, adjust, num_warps=_WARPS),
        Launch(draw_kernel, grid, draw, num_warps=_WARPS),
    ]
    if verifies:
        append = appends | tick | {
            "state": args["state"], "batch": args["batch"], "vocabulary": vocabulary,
            "arrived": scratch.all_arrived, "ENDS": in_loop,
        }  # fmt: skip
        warps = _END_WARPS if in_loop else 1
        launches.append(
            Launch(
                append_kernel, (batch.num_seqs,), append, num_warps=warps,
                max_registers=all_registers(warps),
            )
        )  # fmt: skip
    return launches
