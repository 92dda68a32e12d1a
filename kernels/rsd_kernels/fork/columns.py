"""Which columns of a slot its forks get."""

from __future__ import annotations

from functools import cache
from typing import get_type_hints

from rsd_kernels.state.slots import SlotState

OWN = (  # of each slot: who sits in it, what it has cost, and its pages
    "generation", "arrival", "sample_index", "group", "group_left", "tokens_read", "passes",
    "nanoseconds", "nan_rewards", "guesses_made", "guesses_kept", "kv_len", "page_table",
    "num_pages",
)  # fmt: skip
CONTEXTS = ("tokens", "prm_tokens")  # copied as far as they are valid
LOGPROBS = ("token_logprob", "token_rank", "top_logprob", "top_token")  # where they are asked for


@cache
def forked_columns() -> tuple[str, ...]:
    """The names of all columns whose rows are those of slots, but `OWN`, in the state's order."""
    found = get_type_hints(SlotState, include_extras=True).items()
    by_slot = [name for name, column in found if column.__metadata__[1] == "num_slots"]
    return tuple(name for name in by_slot if name not in OWN)
