"""Pages that change hands between two launches: adopted from whoever filled them, and given up.

A page that several page tables name has as many owners; a page without one is on the stack. What
is in such a page stays as it is until somebody takes the page from the top of the stack, so pages
that may be of use again are put below all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from rsd_kernels.state.enums import NUM_ROLES
from rsd_kernels.state.slots import SlotState


def adopt_pages(
    state: SlotState, role: int, slot: int, pages: Sequence[int], num_tokens: int
) -> None:
    """Makes a slot that holds no pages of a role an owner of `pages`.

    Args:
        state: at rest.
        role: whose K and V are in them.
        slot: that adopts them.
        pages: of the beginning of its context, in order. Those without owners leave the stack.
        num_tokens: whose K and V they hold.
    """
    index = torch.tensor(pages, dtype=torch.int64, device=state.page_owners.device)
    state.page_owners[index] += 1
    state.page_table[role, slot, : len(pages)] = index.to(torch.int32)
    state.num_pages[role, slot] = len(pages)
    state.kv_len[role, slot] = num_tokens
    free = state.free_pages[: int(state.num_free)]
    left = free[state.page_owners[free.long()] == 0]
    state.free_pages[: len(left)] = left
    state.num_free.fill_(len(left))


def copy_page(
    state: SlotState, pages: Tensor, role: int, slot: int, source: int, num_tokens: int
) -> int | None:
    """Gives a slot, whose pages are full, a copy of the beginning of a page.

    Args:
        state: at rest.
        pages: [N, page_bytes] uint8, the pool.
        role: whose K and V are in it.
        slot: that gets the copy, on a page from the stack.
        source: the page.
        num_tokens: of it.

    Returns:
        The page that was taken; None if none is free, and nothing was changed.
    """
    left = int(state.num_free) - 1
    if left < 0:
        return None
    page = int(state.free_pages[left])
    state.num_free.fill_(left)
    state.page_owners[page] = 1
    state.page_stamp[page] += 1
    held = int(state.num_pages[role, slot])
    state.page_table[role, slot, held] = page
    state.num_pages[role, slot] = held + 1
    state.kv_len[role, slot] += num_tokens
    pages[page] = pages[source]
    return page


def give_up_all(state: SlotState, slot: int, is_cached: Callable[[int], bool]) -> list[int]:
    """Gives up all pages of a slot, as after its end; some of those left without owners are cached.

    These go to the bottom of the stack, the ends of its contexts above their beginnings. Pages are
    taken from the top: what was given up first is taken first, and of a context its end. Pages
    that are not cached go to the top, role by role, last page first.

    Returns:
        The pages that have no owner now.
    """
    device = state.free_pages.device
    held = state.num_pages[:, slot].tolist()
    tables = [state.page_table[role, slot, : held[role]].tolist() for role in range(NUM_ROLES)]
    index = torch.tensor(list(chain(*tables)), dtype=torch.int64, device=device)
    state.page_owners[index] -= 1
    unowned = index[state.page_owners[index] == 0].tolist()
    cached = {page for page in unowned if is_cached(page)}
    others = set(unowned) - cached
    by_depth = sorted(chain(*map(enumerate, tables)), key=lambda found: found[0])
    bottom = [page for _, page in by_depth if page in cached]
    top = [page for table in tables for page in reversed(table) if page in others]
    free = state.free_pages[: int(state.num_free)]
    below, above = (
        torch.tensor(pages, dtype=torch.int32, device=device) for pages in (bottom, top)
    )
    stack = torch.cat((below, free, above))
    state.free_pages[: len(stack)] = stack
    state.num_free.fill_(len(stack))
    state.num_pages[:, slot] = 0
    state.kv_len[:, slot] = 0
    return unowned
