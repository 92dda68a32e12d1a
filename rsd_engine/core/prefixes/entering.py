"""Enters what a running request has read into the index of a prefix cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rsd_engine.core.prefixes.chain import Chain
from rsd_engine.core.prefixes.contexts import Context, HeldContexts
from rsd_engine.core.prefixes.index import PrefixIndex
from rsd_kernels import ops
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotState


class Entering:
    """Enters pages, and takes entries back that are not true any more.

    Args:
        state: of the slots.
        tokens_per_page: by role.
        index: that it fills.
    """

    def __init__(
        self, state: SlotState, tokens_per_page: tuple[int, int, int], index: PrefixIndex
    ) -> None:
        self._state = state
        self._tokens_per_page = tokens_per_page
        self._index = index

    def enter(
        self,
        held: HeldContexts,
        slot: int,
        role: Role,
        chain: Chain,
        context: Context,
        *,
        ends: bool,
    ) -> None:
        """Enters the full pages of a role of a slot, and where that ends, the partial one too.

        A page that is the same as one in the index is left out. Of a slot that goes on so are the
        pages behind it: whoever adopts a page of a slot is to adopt all in front of it, so that no
        page of the slot has more owners than one in front. The loop, which looks at the first page
        that it is about to write, then sees that others own it.
        """
        stamps = held.page_stamp
        table = held.page_table[role, slot, : held.num_pages[role, slot]]
        chain.leave_pages(table)
        num_tokens = min(int(held.kv_len[role, slot]), context.final)
        changed = chain.first_change(context.ids)
        if changed is not None and self._take_back(held, slot, role, chain, changed):
            num_tokens = min(num_tokens, changed // chain.size * chain.size)
        chain.extend(context.ids, num_tokens)
        whole = num_tokens // chain.size
        for i in range(len(chain.pages), whole):
            page, digest = int(table[i]), chain.digests[i + 1]
            known = self._index.full_page(digest, stamps)
            if known is None:
                ids = chain.ids[i * chain.size : (i + 1) * chain.size]
                self._index.add(page, int(stamps[page]), chain.digests[i], ids, digest)
            elif known != page and not ends:
                return
            if not ends:
                chain.pages.append(page)
        rest = context.ids[whole * chain.size : num_tokens].tolist()
        if ends and rest:
            self._enter_partial(stamps, int(table[whole]), chain.digests[whole], rest)

    def _enter_partial(
        self, stamps: np.ndarray, page: int, parent: bytes, ids: Sequence[int]
    ) -> None:
        _, same = self._index.best_page(parent, ids, stamps)
        if same < len(ids) and not self._index.holds(page, int(stamps[page])):
            self._index.add(page, int(stamps[page]), parent, ids)

    def _take_back(
        self, held: HeldContexts, slot: int, role: Role, chain: Chain, changed: int
    ) -> bool:
        """Tokens of entered pages have changed, from `changed` on, as the end of a step may.

        The slot reads them again: onto a page of its own if others own this one, which stays as it
        is; else into the same page. If it has done so already, its forks may be the others.

        Returns:
            Whether the slot has given the page up.
        """
        first = changed // chain.size
        pages = held.page_table[role, slot, first : held.num_pages[role, slot]].tolist()
        was_read = held.kv_len[role, slot] > changed
        shared = bool(pages) and not was_read and held.page_owners[pages[0]] > 1
        if shared:
            keep = held.kv_len[:, slot].tolist()
            keep[role] = min(keep[role], first * chain.size)
            ops.truncate_kv(self._state, slot, keep, self._tokens_per_page)
        else:
            for page in pages:  # whoever entered them
                self._index.drop(page)
        chain.cut(first)
        return shared
