"""Which columns of a slot its forks get, and where the slots stand in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import get_type_hints

from rsd_kernels.state.enums import NUM_ROLES
from rsd_kernels.state.slots import SlotState

OWN = (  # of each slot: who sits in it, what it has cost, and its pages
    "generation", "arrival", "sample_index", "group", "group_left", "tokens_read", "passes",
    "nanoseconds", "nan_rewards", "guesses_made", "guesses_kept", "kv_len", "page_table",
    "num_pages",
)  # fmt: skip
CONTEXTS = ("tokens", "prm_tokens")  # copied as far as they are valid
LOGPROBS = ("token_logprob", "token_rank", "top_logprob", "top_token")  # where they are asked for


@dataclass(frozen=True)
class ForkedColumn:
    """A column that forks get."""

    name: str
    by_role: bool  # its first dimension is the role, its second the slot


@cache
def forked_columns() -> tuple[ForkedColumn, ...]:
    """All columns with a value a slot, but `OWN`, in the order of the state."""
    found = []
    for name, column in get_type_hints(SlotState, include_extras=True).items():
        _, *dims = column.__metadata__
        by_role = dims[:1] == [NUM_ROLES]
        if name not in OWN and "num_slots" in dims[by_role : by_role + 1]:
            found.append(ForkedColumn(name, by_role))
    return tuple(found)
