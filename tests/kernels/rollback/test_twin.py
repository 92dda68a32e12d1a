"""The twin of rollback: pages are taken off a stack and go back to it."""

from __future__ import annotations

import pytest

from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.state.enums import Role
from rsd_kernels.state.pages import take_pages
from tests.kernels.harness.slots import PER_PAGE, make_state


def test_the_stack_gives_back_what_it_got() -> None:
    state = make_state(num_pages=20)
    before = state.free_pages.clone()
    take_pages(state, Role.DRAFT, 0, 3)
    take_pages(state, Role.TARGET, 1, 2)
    assert state.page_table[Role.DRAFT, 0, :3].tolist() == [0, 1, 2]
    assert state.page_table[Role.TARGET, 1, :2].tolist() == [3, 4]
    take_pages(state, Role.DRAFT, 0, 1)
    assert state.page_table[Role.DRAFT, 0, :4].tolist() == [0, 1, 2, 5]
    for slot in (0, 1):
        truncate_kv(state, slot, (0, 0, 0), PER_PAGE)
    assert int(state.num_free) == 20
    assert sorted(state.free_pages.tolist()) == sorted(before.tolist())


@pytest.mark.parametrize(
    ("kv_len", "keep", "left", "pages"),
    [(10, 7, 7, 3), (10, 6, 6, 2), (10, 10, 10, 4), (5, 9, 5, 2), (10, 0, 0, 0), (0, 4, 0, 0)],
)
def test_truncate(kv_len: int, keep: int, left: int, pages: int) -> None:
    """Whole pages are freed; a role that lags behind keeps its lag but no spare pages."""
    state = make_state()
    take_pages(state, Role.DRAFT, 2, 4)
    state.kv_len[Role.DRAFT, 2] = kv_len
    held = state.page_table[Role.DRAFT, 2, :pages].tolist()
    truncate_kv(state, 2, (keep, 0, 0), PER_PAGE)
    assert int(state.kv_len[Role.DRAFT, 2]) == left
    assert int(state.num_pages[Role.DRAFT, 2]) == pages
    assert state.page_table[Role.DRAFT, 2, :pages].tolist() == held
    assert int(state.num_free) == 200 - pages
