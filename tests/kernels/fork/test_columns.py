"""No column of a slot is forgotten when it forks."""

from __future__ import annotations

from typing import get_type_hints

from rsd_kernels.fork.columns import OWN, forked_columns
from rsd_kernels.state.slots import SlotState


def test_every_column_of_a_slot_is_copied_or_is_its_own() -> None:
    of_slots = {
        name
        for name, column in get_type_hints(SlotState, include_extras=True).items()
        if "num_slots" in column.__metadata__[1:3]  # the slot, or the role and the slot
    }
    assert of_slots == {*forked_columns(), *OWN} and not set(forked_columns()) & set(OWN)
