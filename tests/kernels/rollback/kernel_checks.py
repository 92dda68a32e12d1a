"""Rollback in Triton against its twin. Run by `test_kernel.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from rsd_kernels.rollback import kernel as rollback_kernel
from rsd_kernels.rollback import twin as rollback_twin
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE


def paged(
    num_roles: int, num_slots: int, tokens_per_page: tuple[int, ...], seed: int
) -> dict[str, torch.Tensor]:
    """A page table in use; some slots are empty, one may be full, the stack is shuffled.

    Slots of a role share first pages: with the slot before, or with one outside of the tables too.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = 37
    kv_len = torch.randint(0, 90, (num_roles, num_slots), generator=generator)
    kv_len[:, ::3] = 0
    for role, tokens in enumerate(tokens_per_page):
        kv_len[role] = kv_len[role].clamp(max=columns * tokens)
        kv_len[role, -1] = columns * tokens
    pages = torch.randperm(num_roles * num_slots * columns + 5, generator=generator)
    table = torch.full((num_roles, num_slots, columns), -7)
    num_pages = torch.zeros(num_roles, num_slots, dtype=torch.long)
    taken = 0
    for role in range(num_roles):
        for slot in range(num_slots):
            held = -(-int(kv_len[role, slot]) // tokens_per_page[role])
            table[role, slot, :held] = pages[taken : taken + held]
            num_pages[role, slot] = held
            taken += held
    free = torch.full((len(pages),), -9)
    num_free = len(pages) - taken
    free[:num_free] = pages[taken:]
    owners = torch.zeros(len(pages), dtype=torch.long)
    owners[pages[:taken]] = 1
    for role in range(num_roles):
        for slot in range(1, num_slots):
            most = int(num_pages[role, slot - 1 : slot + 1].min())
            shared = int(torch.randint(0, most + 1, (), generator=generator))
            before = table[role, slot, :shared].clone()
            table[role, slot, :shared] = table[role, slot - 1, :shared]
            owners[table[role, slot, :shared]] += 1
            owners[before] = 0
            free[num_free : num_free + shared] = before
            num_free += shared
    owners[pages[:taken:7]] += owners[pages[:taken:7]] > 0
    keep = torch.randint(0, 100, (num_roles, num_slots), generator=generator)
    keep[:, 1::4] = 0
    named = {
        "kv_len": kv_len, "num_pages": num_pages, "page_table": table, "free_pages": free,
        "num_free": torch.tensor([num_free]), "page_owners": owners, "keep": keep,
    }  # fmt: skip
    return {name: tensor.to(torch.int32).to(DEVICE) for name, tensor in named.items()}


@pytest.mark.parametrize(
    ("num_roles", "num_slots", "tokens_per_page"),
    [(3, 5, (3, 2, 5)), (3, 16, (16, 7, 16)), (1, 1, (4,)), (2, 9, (1, 64))],
)
def test_rollback(num_roles: int, num_slots: int, tokens_per_page: tuple[int, ...]) -> None:
    for seed in range(3):
        ours = paged(num_roles, num_slots, tokens_per_page, seed)
        twins = {name: tensor.clone() for name, tensor in ours.items()}
        rollback_kernel.rollback(**ours, tokens_per_page=tokens_per_page)
        rollback_twin.rollback(**twins, tokens_per_page=tokens_per_page)
        for name, tensor in twins.items():
            assert torch.equal(ours[name], tensor), name


def test_a_page_that_two_slots_give_up() -> None:
    """The last of its owners puts it onto the stack; one that somebody else owns stays."""
    named = {
        "kv_len": [[4, 4]], "num_pages": [[4, 4]], "page_table": [[[5, 1, 2, 0], [5, 1, 3, 4]]],
        "free_pages": [-9] * 6, "num_free": [0], "page_owners": [1, 3, 1, 1, 1, 2],
        "keep": [[0, 0]],
    }  # fmt: skip
    tensors = {name: torch.tensor(v, dtype=torch.int32).to(DEVICE) for name, v in named.items()}
    rollback_kernel.rollback(**tensors, tokens_per_page=(1,))
    assert tensors["free_pages"].tolist() == [0, 2, 4, 3, 5, -9]
    assert tensors["num_free"].tolist() == [5]
    assert tensors["page_owners"].tolist() == [0, 1, 0, 0, 0, 0]


@triton.jit
def _one_page_too_few(
    kv_len: tl.tensor,
    num_pages: tl.tensor,
    o_row: tl.tensor,
    b_keep: tl.tensor,
    tokens_per_page: tl.tensor,
    m_lane: tl.tensor,
) -> tuple[tl.tensor, ...]:
    b_kv = tl.minimum(tl.load(kv_len + o_row, mask=m_lane, other=0), b_keep)
    b_held = tl.load(num_pages + o_row, mask=m_lane, other=0)
    return b_kv, b_held, tl.maximum(b_held - b_kv // tokens_per_page, 0)


@triton.jit
def _keeps_too_much(
    kv_len: tl.tensor,
    num_pages: tl.tensor,
    o_row: tl.tensor,
    b_keep: tl.tensor,
    tokens_per_page: tl.tensor,
    m_lane: tl.tensor,
) -> tuple[tl.tensor, ...]:
    b_kv = tl.load(kv_len + o_row, mask=m_lane, other=0)
    b_held = tl.load(num_pages + o_row, mask=m_lane, other=0)
    b_needed = (tl.minimum(b_kv, b_keep) + tokens_per_page - 1) // tokens_per_page
    return b_kv, b_held, tl.maximum(b_held - b_needed, 0)


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel keeps the functions it was made of")
@pytest.mark.parametrize("broken", [_one_page_too_few, _keeps_too_much])
def test_a_broken_rollback_is_caught(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback_kernel, "_surplus", broken)
    with pytest.raises(AssertionError):
        test_rollback(2, 9, (3, 4))


def test_rollback_says_what_is_wrong() -> None:
    good = paged(2, 3, (4, 4), 0)
    for name, bad, message in (
        ("keep", good["keep"][:, :2], "keep has shape"),
        ("keep", good["keep"].long(), "keep has dtype torch.int64"),
        ("page_table", good["page_table"].transpose(0, 1), "page_table has shape"),
        ("kv_len", good["kv_len"].t().contiguous().t(), "kv_len has strides"),
        ("page_owners", good["page_owners"][1:], "page_owners has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            rollback_kernel.rollback(**(good | {name: bad}), tokens_per_page=(4, 4))
    with pytest.raises(ValueError, match="tokens_per_page is"):
        rollback_kernel.rollback(**good, tokens_per_page=(4,))
