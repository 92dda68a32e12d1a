"""Move K/V cursors back and return pages, for all roles and slots in one launch.

kv_len = min(kv_len, keep); pages past ceil(kv_len / tokens_per_page) lose an owner, and go onto the
stack of free pages where it was the last: slot by slot, role by role, last page first. K and V
themselves are not touched.

Twin: `rsd_kernels.rollback.twin`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.launch import (
    Launch,
    check_contiguous,
    check_devices,
    check_dtype,
    debugging,
    next_power_of_2,
)
from rsd_kernels.rollback.checks import check_rollback
from rsd_kernels.state.args import check_state, warps_for
from rsd_kernels.state.debug import check_pages
from rsd_kernels.state.enums import NUM_ROLES
from rsd_kernels.state.slots import SlotState

_CHUNK = tl.constexpr(32)  # pages that a slot gives up at a time


@triton.jit
def _surplus(
    kv_len: tl.tensor,
    num_pages: tl.tensor,
    o_role: tl.tensor,
    b_keep: tl.tensor,
    tokens_per_page: tl.tensor,
    m_lane: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """One role's new cursors, pages held and pages to return."""
    b_kv = tl.minimum(tl.load(kv_len + o_role, mask=m_lane, other=0), b_keep)
    b_held = tl.load(num_pages + o_role, mask=m_lane, other=0)
    b_needed = (b_kv + tokens_per_page - 1) // tokens_per_page
    return b_kv, b_held, tl.maximum(b_held - b_needed, 0)


@triton.jit
def _pick(b_values: tl.tensor, m_chosen: tl.tensor) -> tl.tensor:
    return tl.sum(tl.where(m_chosen, b_values, 0))


@triton.jit
def give_up(
    page_table: tl.tensor,
    free_pages: tl.tensor,
    page_owners: tl.tensor,
    free: tl.tensor,
    slot: tl.tensor,
    held0: tl.tensor,
    held1: tl.tensor,
    held2: tl.tensor,
    count0: tl.tensor,
    count1: tl.tensor,
    count2: tl.tensor,
    num_slots: tl.tensor,
    num_columns: tl.tensor,
) -> tl.tensor:
    """Gives up the last `count` of the pages that each role of one slot holds, role by role.

    Those that nobody owns any more go onto the stack, which has `free`; returns how many it has.
    """
    total = count0 + count1 + count2
    done = 0
    while done < total:
        o_page = done + tl.arange(0, _CHUNK)
        m_page = o_page < total
        m_role1, m_role2 = o_page >= count0, o_page >= count0 + count1
        b_role = tl.where(m_role2, 2, tl.where(m_role1, 1, 0))
        b_end = tl.where(m_role1, held1 + count0, held0)
        b_end = tl.where(m_role2, held2 + count0 + count1, b_end)
        o_row = (b_role * num_slots + slot).to(tl.int64) * num_columns
        b_page = tl.load(page_table + o_row + b_end - 1 - o_page, mask=m_page, other=0)
        b_owners = tl.atomic_add(page_owners + b_page, -1, mask=m_page, sem="relaxed")
        b_free = tl.where(m_page & (b_owners == 1), 1, 0)
        b_at = free + tl.cumsum(b_free, 0) - b_free
        tl.store(free_pages + b_at, b_page, mask=b_free == 1)
        free += tl.sum(b_free)
        done += _CHUNK
        tl.debug_barrier()  # the next slot may own the same pages
    return free


@triton.jit
def truncate_lanes(
    kv_len: tl.tensor,  # [ROLES, B]
    num_pages: tl.tensor,  # [ROLES, B]
    page_table: tl.tensor,  # [ROLES, B, num_columns]
    free_pages: tl.tensor,  # [N]
    num_free: tl.tensor,  # [1]
    page_owners: tl.tensor,  # [N]
    b_slot: tl.tensor,  # [lanes] int32, a slot at most once
    m_lane: tl.tensor,  # [lanes]
    b_keep0: tl.tensor,
    b_keep1: tl.tensor,
    b_keep2: tl.tensor,  # [lanes] tokens to keep of each role
    tokens_per_page0: tl.tensor,
    tokens_per_page1: tl.tensor,
    tokens_per_page2: tl.tensor,
    num_slots: tl.tensor,
    num_columns: tl.tensor,
    ROLES: tl.constexpr,
) -> None:
    """Rolls back the slot of every lane; pages are given up in the order of the lanes.

    Few lanes have pages to give up in a tick, and two of them may own the same: they go one by one.
    """
    o_role0 = b_slot.to(tl.int64)
    o_role1 = o_role0 + num_slots
    o_role2 = o_role1 + num_slots
    free = tl.load(num_free)
    b_kv0, b_held0, b_count0 = _surplus(
        kv_len, num_pages, o_role0, b_keep0, tokens_per_page0, m_lane
    )
    b_kv1, b_held1, b_count1 = b_kv0, b_held0, b_count0 * 0
    b_kv2, b_held2, b_count2 = b_kv0, b_held0, b_count0 * 0
    if ROLES > 1:
        b_kv1, b_held1, b_count1 = _surplus(
            kv_len, num_pages, o_role1, b_keep1, tokens_per_page1, m_lane
        )
    if ROLES > 2:
        b_kv2, b_held2, b_count2 = _surplus(
            kv_len, num_pages, o_role2, b_keep2, tokens_per_page2, m_lane
        )
    tl.debug_barrier()  # every warp has read the cursors before one of them is overwritten
    tl.store(kv_len + o_role0, b_kv0, mask=m_lane)
    tl.store(num_pages + o_role0, b_held0 - b_count0, mask=m_lane)
    if ROLES > 1:
        tl.store(kv_len + o_role1, b_kv1, mask=m_lane)
        tl.store(num_pages + o_role1, b_held1 - b_count1, mask=m_lane)
    if ROLES > 2:
        tl.store(kv_len + o_role2, b_kv2, mask=m_lane)
        tl.store(num_pages + o_role2, b_held2 - b_count2, mask=m_lane)
    lanes: tl.constexpr = b_slot.shape[0]
    b_lane = tl.arange(0, lanes)
    m_left = (b_count0 + b_count1 + b_count2) > 0
    lane = tl.min(tl.where(m_left, b_lane, lanes))
    while lane < lanes:
        m_chosen = b_lane == lane
        free = give_up(
            page_table, free_pages, page_owners, free, _pick(b_slot, m_chosen),
            _pick(b_held0, m_chosen), _pick(b_held1, m_chosen), _pick(b_held2, m_chosen),
            _pick(b_count0, m_chosen), _pick(b_count1, m_chosen), _pick(b_count2, m_chosen),
            num_slots, num_columns,
        )  # fmt: skip
        lane = tl.min(tl.where(m_left & (b_lane > lane), b_lane, lanes))
    tl.store(num_free, free)


@triton.jit
def rollback_kernel(
    kv_len: tl.tensor,  # [ROLES, B]
    num_pages: tl.tensor,  # [ROLES, B]
    page_table: tl.tensor,  # [ROLES, B, num_columns]
    free_pages: tl.tensor,  # [N]
    num_free: tl.tensor,  # [1]
    page_owners: tl.tensor,  # [N]
    keep: tl.tensor,  # [ROLES, B]
    tokens_per_page0: tl.tensor,
    tokens_per_page1: tl.tensor,
    tokens_per_page2: tl.tensor,
    num_slots: tl.tensor,
    num_columns: tl.tensor,
    ROLES: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    b_slot = tl.arange(0, BLOCK_S)
    m_lane = b_slot < num_slots
    b_keep0 = tl.load(keep + b_slot, mask=m_lane, other=0)
    b_keep1, b_keep2 = b_keep0, b_keep0
    if ROLES > 1:
        b_keep1 = tl.load(keep + num_slots + b_slot, mask=m_lane, other=0)
    if ROLES > 2:
        b_keep2 = tl.load(keep + 2 * num_slots + b_slot, mask=m_lane, other=0)
    truncate_lanes(
        kv_len, num_pages, page_table, free_pages, num_free, page_owners, b_slot, m_lane,
        b_keep0, b_keep1, b_keep2, tokens_per_page0, tokens_per_page1, tokens_per_page2,
        num_slots, num_columns, ROLES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["slot", "keep0", "keep1", "keep2"])
def truncate_slot_kernel(
    kv_len: tl.tensor,
    num_pages: tl.tensor,
    page_table: tl.tensor,
    free_pages: tl.tensor,
    num_free: tl.tensor,
    page_owners: tl.tensor,
    slot: tl.tensor,
    keep0: tl.tensor,
    keep1: tl.tensor,
    keep2: tl.tensor,
    tokens_per_page0: tl.tensor,
    tokens_per_page1: tl.tensor,
    tokens_per_page2: tl.tensor,
    num_slots: tl.tensor,
    num_columns: tl.tensor,
) -> None:
    b_lane = tl.arange(0, 2)
    b_slot = b_lane * 0 + slot
    truncate_lanes(
        kv_len, num_pages, page_table, free_pages, num_free, page_owners, b_slot, b_lane < 1,
        b_lane * 0 + keep0, b_lane * 0 + keep1, b_lane * 0 + keep2,
        tokens_per_page0, tokens_per_page1, tokens_per_page2,
        num_slots, num_columns, 3,
    )  # fmt: skip


def rollback(
    kv_len: Tensor,  # [R, B] int32
    num_pages: Tensor,  # [R, B] int32
    page_table: Tensor,  # [R, B, P] int32
    free_pages: Tensor,  # [N] int32
    num_free: Tensor,  # [1] int32
    page_owners: Tensor,  # [N] int32
    keep: Tensor,  # [R, B] int32
    tokens_per_page: Sequence[int],  # R values
) -> None:
    """Rolls back every (role, slot) to `keep` tokens of K/V, for R = 1 to 3 roles.

    Raises:
        ValueError: an argument has an unsupported shape, dtype, stride or device.
    """
    tensors = {
        "kv_len": kv_len, "num_pages": num_pages, "page_table": page_table,
        "free_pages": free_pages, "num_free": num_free, "page_owners": page_owners, "keep": keep,
    }  # fmt: skip
    check_rollback(**tensors, tokens_per_page=tokens_per_page)
    check_devices(**tensors)
    for name, tensor in tensors.items():
        check_dtype(name, tensor, torch.int32)
        check_contiguous(name, tensor)
    if debugging():
        check_pages(num_pages, page_table, free_pages, num_free)
    rollback_launch(**tensors, tokens_per_page=tokens_per_page).run()


def rollback_launch(
    kv_len: Tensor,
    num_pages: Tensor,
    page_table: Tensor,
    free_pages: Tensor,
    num_free: Tensor,
    page_owners: Tensor,
    keep: Tensor,
    tokens_per_page: Sequence[int],
) -> Launch:
    num_roles, num_slots = kv_len.shape
    padded = (*tokens_per_page, 1, 1)
    return Launch(
        rollback_kernel,
        (1,),
        {
            "kv_len": kv_len, "num_pages": num_pages, "page_table": page_table,
            "free_pages": free_pages, "num_free": num_free, "page_owners": page_owners,
            "keep": keep, "tokens_per_page0": padded[0], "tokens_per_page1": padded[1],
            "tokens_per_page2": padded[2], "num_slots": num_slots,
            "num_columns": page_table.shape[2], "ROLES": num_roles,
            "BLOCK_S": next_power_of_2(num_slots),
        },
        num_warps=warps_for(num_slots),
    )  # fmt: skip


def truncate_kv(
    state: SlotState, slot: int, keep: Sequence[int], tokens_per_page: Sequence[int]
) -> None:
    """Rolls back one slot to `keep[role]` tokens of K/V; see the twin.

    Raises:
        ValueError: `slot` is not a slot, `keep` or `tokens_per_page` does not have one value for
            each role, or the state is not contiguous or not on one device that runs Triton.
    """
    if not 0 <= slot < state.num_slots:
        raise ValueError(f"slot is {slot}; it must be 0 to {state.num_slots - 1}")
    if len(keep) != NUM_ROLES or len(tokens_per_page) != NUM_ROLES:
        raise ValueError(
            f"keep has {len(keep)} and tokens_per_page {len(tokens_per_page)} values; "
            f"each must have {NUM_ROLES}, one for each role"
        )
    check_state(state)
    truncate_slot_launch(state, slot, keep, tokens_per_page).run()


def truncate_slot_launch(
    state: SlotState, slot: int, keep: Sequence[int], tokens_per_page: Sequence[int]
) -> Launch:
    return Launch(
        truncate_slot_kernel,
        (1,),
        {
            "kv_len": state.kv_len, "num_pages": state.num_pages, "page_table": state.page_table,
            "free_pages": state.free_pages, "num_free": state.num_free,
            "page_owners": state.page_owners, "slot": slot,
            "keep0": keep[0], "keep1": keep[1], "keep2": keep[2],
            "tokens_per_page0": tokens_per_page[0], "tokens_per_page1": tokens_per_page[1],
            "tokens_per_page2": tokens_per_page[2], "num_slots": state.num_slots,
            "num_columns": state.page_table.shape[2],
        },
        num_warps=1,
    )  # fmt: skip
