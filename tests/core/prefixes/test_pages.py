"""Pages that change hands: owners, tables, the order of the stack, bytes of copies."""

from __future__ import annotations

import torch

from rsd_engine.memory.shared_pages import adopt_pages, copy_page, give_up_all
from rsd_kernels import ops
from rsd_kernels.state.enums import Phase, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.page_checks import check_integrity

SIZES = (4, 2, 3)


def make_state() -> SlotState:
    """Eight free pages, 0 on top."""
    sizes = SlotSizes(
        num_slots=3, max_len=32, prm_max_len=32, pages_per_role=8, num_pages=8, log_words=8
    )
    state = SlotState.allocate(sizes, torch.device("cpu"))
    state.length.fill_(32)
    state.prm_length.fill_(32)
    state.phase.fill_(Phase.DRAFT)
    return state


def stack(state: SlotState) -> list[int]:
    """From the bottom to the top."""
    return [int(page) for page in state.free_pages[: int(state.num_free)]]


def hold(state: SlotState, slot: int, role: Role, count: int) -> None:
    take_pages(state, role, slot, count)
    state.kv_len[role, slot] = count * SIZES[role]


def test_pages_in_use_get_another_owner() -> None:
    state = make_state()
    hold(state, 0, Role.DRAFT, 3)
    adopt_pages(state, Role.DRAFT, 1, [0, 1], 8)
    assert state.page_table[Role.DRAFT, 1, :2].tolist() == [0, 1]
    assert state.page_owners.tolist() == [2, 2, 1, 0, 0, 0, 0, 0]
    assert int(state.kv_len[Role.DRAFT, 1]) == 8
    assert stack(state) == [7, 6, 5, 4, 3]
    check_integrity(state, SIZES)


def test_free_pages_leave_the_stack_and_keep_their_stamps() -> None:
    state = make_state()
    state.page_stamp.fill_(4)
    adopt_pages(state, Role.TARGET, 2, [6, 2], 3)
    assert stack(state) == [7, 5, 4, 3, 1, 0]
    assert state.page_stamp.tolist() == [4] * 8
    check_integrity(state, SIZES)


def test_what_is_given_up_first_is_taken_first_and_ends_before_beginnings() -> None:
    state = make_state()
    hold(state, 0, Role.DRAFT, 2)  # 0 1
    hold(state, 0, Role.TARGET, 2)  # 2 3
    hold(state, 1, Role.DRAFT, 2)  # 4 5
    assert give_up_all(state, 0, lambda page: page != 2) == [0, 1, 2, 3]
    assert stack(state) == [0, 1, 3, 7, 6, 2]
    give_up_all(state, 1, lambda page: True)
    assert stack(state) == [4, 5, 0, 1, 3, 7, 6, 2]
    assert state.num_pages.sum() == state.kv_len.sum() == 0
    check_integrity(state, SIZES)


def test_pages_of_others_stay_where_they_are() -> None:
    state = make_state()
    hold(state, 0, Role.DRAFT, 2)
    adopt_pages(state, Role.DRAFT, 1, [0], 4)
    assert give_up_all(state, 0, lambda page: True) == [1]
    assert stack(state) == [1, 7, 6, 5, 4, 3, 2]
    check_integrity(state, SIZES)
    ops.truncate_kv(state, 1, (0, 0, 0), SIZES)
    assert stack(state)[-1] == 0
    check_integrity(state, SIZES)


def test_a_copy_has_all_bytes_and_a_stamp_of_its_own() -> None:
    state = make_state()
    pages = torch.arange(80, dtype=torch.uint8).view(8, 10)
    hold(state, 0, Role.DRAFT, 2)
    adopt_pages(state, Role.DRAFT, 1, [0], 4)
    assert copy_page(state, pages, Role.DRAFT, 1, 1, 3) == 2
    assert pages[2].tolist() == list(range(10, 20))
    assert int(state.page_stamp[2]) == 1 and int(state.page_owners[2]) == 1
    assert int(state.kv_len[Role.DRAFT, 1]) == 7
    check_integrity(state, SIZES)


def test_without_a_free_page_nothing_is_copied() -> None:
    state = make_state()
    hold(state, 0, Role.DRAFT, 8)
    adopt_pages(state, Role.DRAFT, 1, [0], 4)
    pages = torch.zeros(8, 10, dtype=torch.uint8)
    assert copy_page(state, pages, Role.DRAFT, 1, 1, 3) is None
    assert int(state.kv_len[Role.DRAFT, 1]) == 4
    check_integrity(state, SIZES)
