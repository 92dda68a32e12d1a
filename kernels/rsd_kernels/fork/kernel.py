"""A slot becomes several: three launches, whatever the number of targets.

The first copies the rows of all columns, one program for each column and target; the second page
tables and cursors, one program for each target and role, which leaves a list of partial pages; the
third copies the bytes of these.

Twin: `rsd_kernels.fork.twin`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.fork.columns import CONTEXTS, LOGPROBS, forked_columns
from rsd_kernels.launch import (
    Launch,
    ceil_div,
    check_contiguous,
    check_devices,
    check_dtype,
    next_power_of_2,
)
from rsd_kernels.state.args import check_state, page_sizes, state_args
from rsd_kernels.state.enums import NUM_ROLES, Role
from rsd_kernels.state.slots import SlotState

# What a program copies of the row of a column.
_ALL = tl.constexpr(0)
_CONTEXT = tl.constexpr(1)  # tokens and guesses
_PRM_CONTEXT = tl.constexpr(2)
_LOGPROBS = tl.constexpr(3)  # where the request asks for them
_DRAFT = tl.constexpr(int(Role.DRAFT))
_TARGET = tl.constexpr(int(Role.TARGET))
_PRM = tl.constexpr(int(Role.PRM))
_NUM_ROLES = tl.constexpr(NUM_ROLES)
_WORDS = tl.constexpr(1024)  # of a row that a program copies at a time
_PAGES = tl.constexpr(128)  # the same, of a page table
_PAGE_CHUNK = 1 << 14  # bytes of a page that a program copies


@triton.jit
def copy_columns_kernel(
    state: tl.tuple,
    slots: tl.tensor,  # [1 + targets] int32: the source, then the targets
    columns: tl.tensor,  # [columns, 3] int64: address, words of a row, what to copy of it
) -> None:
    p_column = columns + 3 * tl.program_id(0)
    source, target = tl.load(slots), tl.load(slots + 1 + tl.program_id(1))
    size, what = tl.load(p_column + 1), tl.load(p_column + 2)
    p_rows = tl.load(p_column).to(tl.pointer_type(tl.int32))
    p_from, p_to = p_rows + source * size, p_rows + target * size
    if what == _CONTEXT:
        guessed = tl.load(state.guess_end + source)
        size = tl.maximum(tl.load(state.length + source), guessed).to(tl.int64)
    elif what == _PRM_CONTEXT:
        size = tl.load(state.prm_length + source).to(tl.int64)
    elif what == _LOGPROBS:
        size = tl.where(tl.load(state.num_logprobs + source) < 0, 0, size)
    done = size * 0
    while done < size:
        o_word = done + tl.arange(0, _WORDS)
        b_word = tl.load(p_from + o_word, mask=o_word < size, other=0)
        tl.store(p_to + o_word, b_word, mask=o_word < size)
        done += _WORDS


@triton.jit
def _kept(
    state: tl.tuple, source: tl.tensor, tokens_per_page: tl.tensor, ROLE: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Tokens of the source that a role of a target keeps; whole pages, and 1 if one is partial."""
    kv = tl.load(state.kv_len + ROLE * state.num_slots + source)
    if ROLE != _PRM:  # it reads its last token again, to sample from it
        kv = tl.maximum(tl.minimum(kv, tl.load(state.length + source) - 1), 0)
    whole = kv // tokens_per_page
    return kv, whole, tl.where(kv > whole * tokens_per_page, 1, 0)


@triton.jit
def share_pages_kernel(
    state: tl.tuple,
    slots: tl.tensor,  # [1 + targets] int32: the source, then the targets
    copies: tl.tensor,  # [targets, NUM_ROLES, 2] int32, written: page and its copy; -1: none
    tokens_per_page: tl.tuple,
) -> None:
    i_target, role = tl.program_id(0), tl.program_id(1)
    source, target = tl.load(slots), tl.load(slots + 1 + i_target)
    kv0, whole0, partial0 = _kept(state, source, tokens_per_page.draft, _DRAFT)
    kv1, whole1, partial1 = _kept(state, source, tokens_per_page.target, _TARGET)
    kv2, whole2, partial2 = _kept(state, source, tokens_per_page.prm, _PRM)
    first, second = role == _DRAFT, role == _TARGET
    kv = tl.where(first, kv0, tl.where(second, kv1, kv2))
    whole = tl.where(first, whole0, tl.where(second, whole1, whole2))
    partial = tl.where(first, partial0, tl.where(second, partial1, partial2))
    size = tl.where(second, tokens_per_page.target, tokens_per_page.prm)
    size = tl.where(first, tokens_per_page.draft, size)
    # Pages come off the stack target by target, role by role.
    before = i_target * (partial0 + partial1 + partial2)
    before += tl.where(first, 0, partial0) + tl.where(first | second, 0, partial1)
    at = tl.load(state.num_free) - 1 - before
    copied = (partial == 1) & (at >= 0)
    table = role * state.num_slots
    p_from = state.page_table + (table + source).to(tl.int64) * state.num_columns
    p_to = state.page_table + (table + target).to(tl.int64) * state.num_columns
    done = whole * 0
    while done < whole:
        o_page = done + tl.arange(0, _PAGES)
        m_page = o_page < whole
        b_page = tl.load(p_from + o_page, mask=m_page, other=0)
        tl.store(p_to + o_page, b_page, mask=m_page)
        tl.atomic_add(state.page_owners + b_page, 1, mask=m_page, sem="relaxed")
        done += _PAGES
    page = tl.load(state.free_pages + at, mask=copied, other=-1)
    p_copy = copies + (i_target * _NUM_ROLES + role) * 2
    tl.store(p_copy, tl.load(p_from + whole, mask=copied, other=-1))
    tl.store(p_copy + 1, page)
    tl.store(p_to + whole, page, mask=copied)
    tl.atomic_add(state.page_owners + page, 1, mask=copied, sem="relaxed")
    tl.atomic_add(state.page_stamp + page, 1, mask=copied, sem="relaxed")
    held = tl.where(copied, whole + 1, whole)
    tl.store(state.num_pages + table + target, held)
    tl.store(state.kv_len + table + target, tl.where(copied, kv, whole * size))


@triton.jit(do_not_specialize=["num_copies"])
def copy_pages_kernel(
    state: tl.tuple,
    pages: tl.tensor,  # [N, page_bytes] uint8
    copies: tl.tensor,  # [num_copies, 2] int32: page and its copy; -1: none
    num_copies: tl.tensor,
    page_bytes: tl.tensor,
    BLOCK_C: tl.constexpr,  # at least the copies
    CHUNK: tl.constexpr,
) -> None:
    """Copies pages, and takes the copies off the stack."""
    i_copy, i_chunk = tl.program_id(0), tl.program_id(1)
    page, copy = tl.load(copies + 2 * i_copy), tl.load(copies + 2 * i_copy + 1)
    if copy >= 0:
        o_byte = i_chunk * CHUNK + tl.arange(0, CHUNK)
        m_byte = o_byte < page_bytes
        b_byte = tl.load(pages + page.to(tl.int64) * page_bytes + o_byte, mask=m_byte, other=0)
        tl.store(pages + copy.to(tl.int64) * page_bytes + o_byte, b_byte, mask=m_byte)
    if (i_copy == 0) & (i_chunk == 0):
        o_copy = tl.arange(0, BLOCK_C)
        b_copy = tl.load(copies + 2 * o_copy + 1, mask=o_copy < num_copies, other=-1)
        free = tl.load(state.num_free) - tl.sum(tl.where(b_copy >= 0, 1, 0))
        tl.debug_barrier()
        tl.store(state.num_free, free)


def fork(
    state: SlotState,
    pages: Tensor,  # [N, page_bytes] uint8: the pool
    source: int,
    targets: Sequence[int],
    tokens_per_page: Sequence[int],
) -> None:
    """Makes slots `targets`, which hold no pages, copies of slot `source`; see the twin.

    Raises:
        ValueError: a slot is none of the state's or is named twice, `pages` is not a contiguous
            pool of the state's pages, or the state is not one the kernels can take.
    """
    slots = [source, *targets]
    if len(set(slots)) < len(slots) or not all(0 <= slot < state.num_slots for slot in slots):
        raise ValueError(
            f"source is {source} and targets is {list(targets)}; they must be different slots, "
            f"0 to {state.num_slots - 1}"
        )
    check_state(state)
    check_devices(length=state.length, pages=pages)
    check_dtype("pages", pages, torch.uint8)
    check_contiguous("pages", pages)
    if pages.dim() != 2 or pages.shape[0] != state.free_pages.shape[0]:
        raise ValueError(
            f"pages has shape {list(pages.shape)}; it must be "
            f"{[state.free_pages.shape[0], 'page_bytes']}"
        )
    for launch in fork_launches(state, pages, slots, tokens_per_page):
        launch.run()


def fork_launches(
    state: SlotState, pages: Tensor, slots: Sequence[int], tokens_per_page: Sequence[int]
) -> list[Launch]:
    """slots: the source, then the targets."""
    device, num_targets = state.length.device, len(slots) - 1
    columns = _columns(state)
    num_copies, page_bytes = num_targets * NUM_ROLES, pages.shape[1]
    args = {
        "state": state_args(state),
        "slots": torch.tensor(slots, dtype=torch.int32, device=device),
    }
    copies = torch.empty(num_copies, 2, dtype=torch.int32, device=device)
    sharing = args | {"copies": copies, "tokens_per_page": page_sizes(tokens_per_page)}
    copying = {
        "state": args["state"], "pages": pages, "copies": copies, "num_copies": num_copies,
        "page_bytes": page_bytes, "BLOCK_C": next_power_of_2(max(num_copies, 2)),
        "CHUNK": _PAGE_CHUNK,
    }  # fmt: skip
    chunks = ceil_div(page_bytes, _PAGE_CHUNK)
    return [
        Launch(copy_columns_kernel, (len(columns), num_targets), args | {"columns": columns}),
        Launch(share_pages_kernel, (num_targets, NUM_ROLES), sharing),
        Launch(copy_pages_kernel, (num_copies, chunks), copying),
    ]


def _columns(state: SlotState) -> Tensor:
    """[columns, 3] int64: where a column begins, words of a slot's row, what to copy of it."""
    whats = dict(zip(CONTEXTS, (_CONTEXT, _PRM_CONTEXT), strict=True))
    whats |= dict.fromkeys(LOGPROBS, _LOGPROBS)
    rows = []
    for name in forked_columns():
        column: Tensor = getattr(state, name)
        words = column.nbytes // column.shape[0] // 4
        rows.append((column.data_ptr(), words, whats.get(name, _ALL).value))
    return torch.tensor(rows, dtype=torch.int64, device=state.length.device)
