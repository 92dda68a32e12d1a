"""Pages and lengths of a slot state: checks that they add up, and NaN where nothing may be read."""

from __future__ import annotations

from torch import Tensor

from rsd_engine.memory.page_pool import PagePool
from rsd_kernels.state.debug import longest_kv
from rsd_kernels.state.enums import NUM_ROLES, Phase, Role
from rsd_kernels.state.slots import SlotState, pages_for


def check_integrity(state: SlotState, tokens_per_page: tuple[int, int, int]) -> None:
    """Raises AssertionError unless every page has one owner and every length is in bounds."""
    num_free = int(state.num_free)
    owned = state.free_pages[:num_free].tolist()
    phases = state.phase.tolist()
    longest = longest_kv(state)
    for slot in range(state.num_slots):
        for role in range(NUM_ROLES):
            held = int(state.num_pages[role, slot])
            kv_len = int(state.kv_len[role, slot])
            owned += state.page_table[role, slot, :held].tolist()
            where = f"slot {slot}, {Role(role).name}"
            assert kv_len <= int(longest[Role(role)][slot]), (
                f"{where}: kv_len {kv_len} past its context"
            )
            assert pages_for(kv_len, tokens_per_page[role]) <= held, f"{where}: too few pages"
            if phases[slot] in (Phase.FREE, Phase.DONE):
                assert held == 0, f"{where}: an idle slot holds {held} pages"
        assert int(state.committed[slot]) <= int(state.length[slot]), f"slot {slot}: committed"
    expected = list(range(state.free_pages.shape[0]))
    assert sorted(owned) == expected, "a page is lost or has two owners"


def poison(pool: PagePool, pages: Tensor) -> None:
    """Fills whole pages with 0xFF bytes, which read as NaN in every float type."""
    pool.buffer.view(pool.num_pages, pool.page_bytes)[pages.long()] = 0xFF
