"""Whether the pages and cursors of a state add up: a check on demand, for tests and for doubts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rsd_kernels.state.debug import longest_kv
from rsd_kernels.state.enums import NUM_ROLES, Phase, Role
from rsd_kernels.state.slots import SlotState, pages_for


def find_problems(state: SlotState, tokens_per_page: Sequence[int]) -> list[str]:
    """What is wrong between two launches, a line each.

    Nothing is if every page has as many owners as page tables name it and is on the stack once if
    it has none, and if lengths, cursors and phases are in bounds.
    """
    return [*_pages(state), *_slots(state, tokens_per_page)]


def _pages(state: SlotState) -> Iterator[str]:
    total, num_free = state.free_pages.shape[0], int(state.num_free)
    if not 0 <= num_free <= total:
        yield f"{num_free} pages are free, of {total}"
        return
    free, named = Counter(state.free_pages[:num_free].tolist()), Counter[int]()
    for role in range(NUM_ROLES):
        for slot in range(state.num_slots):
            held = int(state.num_pages[role, slot])
            pages = state.page_table[role, slot, :held].tolist()
            named.update(pages)
            if len(set(pages)) < held:
                yield f"slot {slot}, {Role(role).name}: its table names a page twice"
    for page, owners in enumerate(state.page_owners.tolist()):
        if owners != named[page]:
            yield f"page {page} counts {owners} owners and has {named[page]}"
        if free[page] != (named[page] == 0):
            yield f"page {page} has {named[page]} owners and is {free[page]} times on the stack"
    for page in (free.keys() | named.keys()) - set(range(total)):
        yield f"there is no page {page}"


def _slots(state: SlotState, tokens_per_page: Sequence[int]) -> Iterator[str]:
    phases = [Phase(phase) for phase in state.phase.tolist()]
    longest = longest_kv(state)
    for slot, phase in enumerate(phases):
        length, committed = int(state.length[slot]), int(state.committed[slot])
        if not 0 <= committed <= length <= state.tokens.shape[1]:
            yield f"slot {slot}: {committed} of {length} tokens are committed"
        for role in Role:
            context = int(longest[role][slot])
            if _has_another_context(state, slot, role):
                context = state.tokens.shape[1]
            held, kv_len = int(state.num_pages[role, slot]), int(state.kv_len[role, slot])
            where = f"slot {slot}, {role.name}"
            if kv_len > context:
                yield f"{where}: kv_len {kv_len} past its context of {context}"
            if pages_for(kv_len, tokens_per_page[role]) > held:
                yield f"{where}: {held} pages are too few for kv_len {kv_len}"
            if held and phase == Phase.FREE:
                yield f"{where}: an idle slot holds {held} pages"


def _has_another_context(state: SlotState, slot: int, role: Role) -> bool:
    """Whether the slot holds the other writer's context, so that this one's length is unknown."""
    writes_now = {Phase.DRAFT: Role.DRAFT, Phase.SCORE: Role.DRAFT, Phase.TARGET: Role.TARGET}
    writer = writes_now.get(Phase(int(state.phase[slot])))
    return bool(state.separate_contexts[slot]) and role != Role.PRM and role != writer
