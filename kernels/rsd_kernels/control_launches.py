"""Every control kernel in the shapes that ship, to be compiled ahead of time.

Nothing is launched: the tensors are of device "meta" and have no memory.
"""

from __future__ import annotations

import torch

from rsd_kernels import plan, rollback, settle
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.slot_state import Role, SlotLimits, SlotState
from rsd_kernels.triton_support import Launch

_META = torch.device("meta")
_TOKENS_PER_PAGE = (32, 16, 32)  # Qwen2.5 1.5B, 7B, 1.5B
_MAX_ROWS = 256


def control_launches(num_slots: int = 16) -> dict[str, Launch]:
    """Launches by name, for so many slots."""
    limits = SlotLimits(
        num_slots=num_slots, row_len=4096, prm_row_len=8192, pages_per_role=512,
        num_pages=8192, log_words=1 << 20,
    )  # fmt: skip
    state = SlotState.allocate(limits, _META)
    batch = RowBatch.allocate(_MAX_ROWS, num_slots, _META)
    rewards = torch.empty(num_slots, dtype=torch.float32, device=_META)
    sizes = _TOKENS_PER_PAGE
    return {
        "plan": plan.plan_launch(state, batch, sizes),
        "advance": plan.advance_launch(state, batch, Role.DRAFT),
        "settle": settle.settle_launch(state, sizes),
        "decide": settle.decide_launch(state, batch, rewards, sizes),
        "truncate_kv": rollback.truncate_slot_launch(state, 0, (0, 0, 0), sizes),
        "rollback": rollback.rollback_launch(
            state.kv_len, state.num_pages, state.page_table, state.free_pages, state.num_free,
            state.kv_len, sizes,
        ),
    }  # fmt: skip
