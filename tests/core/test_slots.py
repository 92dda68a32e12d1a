"""A request in a slot, and the check that the other tests lean on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from rsd_engine.core.slots import fill_slot
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.state.enums import Phase, Role
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.loop.toy import encode, toy_request
from tests.page_checks import check_integrity

PER_PAGE = (3, 2, 5)


def allocate() -> SlotState:
    sizes = SlotSizes(
        num_slots=3, max_len=20, prm_max_len=40, pages_per_role=20, num_pages=30, log_words=100
    )
    return SlotState.allocate(sizes, torch.device("cpu"))


def busy_state() -> SlotState:
    state = allocate()
    fill_slot(state, 1, toy_request("abcdef"), generation=1, arrival=1)
    for role, count in ((Role.DRAFT, 2), (Role.TARGET, 3), (Role.PRM, 2)):
        take_pages(state, role, 1, count)
        state.kv_len[role, 1] = 6
    check_integrity(state, PER_PAGE)
    return state


def lost_page(state: SlotState) -> None:
    state.num_free.sub_(1)


def page_of_two(state: SlotState) -> None:
    state.page_table[Role.DRAFT, 1, 0] = state.page_table[Role.PRM, 1, 0]


def uncounted_owner(state: SlotState) -> None:
    state.page_owners[state.page_table[Role.DRAFT, 1, 0]] += 1


def page_named_twice(state: SlotState) -> None:
    state.page_table[Role.DRAFT, 1, 1] = state.page_table[Role.DRAFT, 1, 0]


def too_few_pages(state: SlotState) -> None:
    state.kv_len[Role.DRAFT, 1] = 6
    truncate_kv(state, 1, (3, 6, 6), PER_PAGE)
    state.kv_len[Role.DRAFT, 1] = 4


def length_past_the_context(state: SlotState) -> None:
    state.length[1] = 5


def idle_slot_with_pages(state: SlotState) -> None:
    state.phase[1] = Phase.FREE


def committed_past_the_context(state: SlotState) -> None:
    state.committed[1] = 9


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lost_page, "page 7 has 0 owners and is 0 times"),
        (page_of_two, "counts 1 owners and has 2"),
        (uncounted_owner, "counts 2 owners and has 1"),
        (page_named_twice, "names a page twice"),
        (too_few_pages, "pages are too few"),
        (length_past_the_context, "past its context"),
        (idle_slot_with_pages, "an idle slot holds"),
        (committed_past_the_context, "committed"),
    ],
)
def test_the_check_sees_every_fault(damage: Callable[[SlotState], None], words: str) -> None:
    state = busy_state()
    damage(state)
    with pytest.raises(AssertionError, match=words):
        check_integrity(state, PER_PAGE)


def test_a_slot_keeps_nothing_of_its_last_request() -> None:
    """A reused slot is filled exactly as a fresh one, wherever it can be read."""
    fresh, used = allocate(), allocate()
    for field in fields(used):
        tensor = getattr(used, field.name)
        if tensor.shape[:1] == (3,) and field.name not in ("free_pages", "role_wait"):
            tensor.fill_(1)
    request = toy_request("abc", seed=5, temperature=0.5, stop=("ab", "cd"), num_logprobs=1)
    for state in (fresh, used):
        fill_slot(state, 1, request, generation=4, arrival=9)
    states = request.stops.next.shape[0]
    ignored = {
        # Written before they are read: by `schedule`, `sample_append`, `decide`.
        "step_source", "step_reward", "reward", "token_logprob", "top_logprob",
        "top_token", "token_rank", "num_pages", "page_table", "free_pages", "role_wait",
        # Read as far as their counts, which are compared.
        "biased_token", "bias", "bad_words",
    }  # fmt: skip
    for field in fields(fresh):
        one, two = getattr(fresh, field.name), getattr(used, field.name)
        if field.name in ignored or not one.numel() or one.dim() == 0:
            continue
        if field.name in ("tokens", "prm_tokens"):
            assert one[1, : len(encode("abc"))].tolist() == two[1, : len(encode("abc"))].tolist()
        elif field.name == "stop_moves":
            assert torch.equal(one[1, :states], two[1, :states]), field.name
        elif field.name == "delimiter_moves":
            size = request.delimiters.next.shape[0]
            assert torch.equal(one[1, :size], two[1, :size]), field.name
        elif one.shape == (3, 3):
            assert torch.equal(one[:, 1], two[:, 1]), field.name
        elif one.shape[0] == 3:
            assert torch.equal(one[1], two[1]), field.name
