"""What follows the forward of a writer's pass: two launches, or three if guesses are verified.

The kernels are those of sampling: the first also counts what was read, and the last one deals with
the steps that end, and with the ends of those that are kept (`sample.ends`).

Twin: `rsd_kernels.write.twin`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rsd_kernels.launch import Launch, interpreting, next_power_of_2
from rsd_kernels.retokenise.kernel import check_ends, end_args
from rsd_kernels.sample.kernel import check_sampling, check_scratch, sample_append_launches
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.state.args import check_tables, merge_args, page_sizes
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
    """Counts, draws, appends, and ends the steps that end; see the twin.

    scratch, words: of `SampleScratch.allocate` and `bridge_scratch`; allocated if not given.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device, or
            `role` is not a role.
    """
    check_sampling(state, batch, logits, rules.tables, role)
    check_tables(state, rules.tables, rules.merges)
    if scratch is None:
        scratch = SampleScratch.allocate(state, logits.shape[1], batch.num_places)
    check_scratch(state, batch, logits, scratch)
    words = check_ends(state, rules.ends, words)
    for launch in write_launches(state, batch, logits, role, rules, scratch, words):
        launch.run()


def write_launches(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,
    role: int,
    rules: WriteRules,
    scratch: SampleScratch,
    words: Tensor,
) -> list[Launch]:
    tick: dict[str, Any] = {
        "merges": None if rules.merges is None else merge_args(rules.merges),
        "words": words,
        "tokens_per_page": page_sizes(rules.tokens_per_page),
        **end_args(rules.ends),
        "DECIDES": int(rules.confidence),
        "BLOCK_S": max(next_power_of_2(state.num_slots), 2),
        "CLOCK": not interpreting(),
    }
    return sample_append_launches(
        state, batch, logits, rules.tables, role, scratch, rules.measured(role),
        verifies=rules.verifies, tick=tick,
    )  # fmt: skip
