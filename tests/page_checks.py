"""Pages and lengths of a slot state: checks that they add up, and NaN where nothing may be read."""

from __future__ import annotations

from torch import Tensor

from rsd_engine.core.integrity import find_problems
from rsd_engine.memory.page_pool import PagePool
from rsd_kernels.state.slots import SlotState


def check_integrity(state: SlotState, tokens_per_page: tuple[int, int, int]) -> None:
    """Raises AssertionError unless every page has one owner and every length is in bounds."""
    problems = find_problems(state, tokens_per_page)
    assert not problems, "; ".join(problems)


def poison(pool: PagePool, pages: Tensor) -> None:
    """Fills whole pages with 0xFF bytes, which read as NaN in every float type."""
    pool.buffer.view(pool.num_pages, pool.page_bytes)[pages.long()] = 0xFF
