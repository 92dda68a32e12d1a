"""K and V of earlier tokens, found again: every role's, between two launches.

Nothing is kept back for it. What a request has read is entered before it gives its pages up, and
they wait on the stack of free pages, below all others, until somebody takes them. A request that
begins, or goes on after a preemption, becomes an owner of the full pages that hold the beginning of
its context, whether they are free or in use, and gets a copy of the beginning of one page more.
It reads the rest, and writes what it would have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


from rsd_engine.core.page_needs import roles_of
from rsd_engine.core.prefixes.chain import Chain
from rsd_engine.core.prefixes.contexts import Context, HeldContexts, context_of_prompt
from rsd_engine.core.prefixes.entering import Entering
from rsd_engine.core.prefixes.index import PrefixIndex
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.writer_contexts import WriterContexts
from rsd_engine.loop.rsd import Loop
from rsd_engine.memory.shared_pages import adopt_pages, copy_page, give_up_all
from rsd_kernels import ops
from rsd_kernels.schedule.rules import kv_role
from rsd_kernels.state.columns import host
from rsd_kernels.state.enums import Role

Chains = Mapping[Role, Chain]


@dataclass
class _Holder:
    """A request that has a slot.

    Attributes:
        writers: contexts of draft and target, if they have one each.
        chains: of the roles that read for it.
        found: tokens of its prompt that a role found.
        waits: for what is to be found.
        preempted: before now; what it finds again then is its own.
        trusted: whether others may find what it has read.
    """

    writers: WriterContexts | None
    chains: Chains
    found: dict[Role, int] = field(default_factory=dict)
    waits: bool = True
    preempted: bool = False
    trusted: bool = True


class PrefixCache:
    """The cache of one engine.

    Args:
        loop: whose pages they are.
        enabled: without it, no request takes part.
    """

    def __init__(self, loop: Loop, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._loop = loop
        self._state = loop.state
        self._index = PrefixIndex()
        self._entering = Entering(loop.state, loop.tokens_per_page, self._index)
        self._holders: dict[int, _Holder] = {}  # by slot
        self._asked: tuple[SlotRequest, Chains] | None = None  # the request that is next

    def join(self, slot: int, request: SlotRequest, writers: WriterContexts | None) -> None:
        """A request has got a slot."""
        if self._enabled:
            self._holders[slot] = _Holder(writers, self._chains(request))
            self._asked = None

    def found(self, slot: int, role: Role) -> int:
        """Tokens of its context that a role of the slot's request need not read."""
        holder = self._holders.get(slot)
        return holder.found.get(role, 0) if holder else 0

    def distrust(self, slot: int) -> None:
        """Nobody is to find what the request of a slot has read: it has failed."""
        if slot in self._holders:
            self._holders[slot].trusted = False

    def reset(self) -> None:
        """Nothing that has been read is found any more."""
        self._index.clear()
        for slot in self._holders:
            self.distrust(slot)

    def holds(self, page: int) -> bool:
        """Whether a page may be found."""
        return self._index.holds(page, int(self._state.page_stamp[page]))

    def shared_pages(self, request: SlotRequest, slot: int | None = None) -> int:
        """How many of the pages that it needs are in use already, by requests with the same tokens.

        slot: the request's, if it has one.
        """
        if not self._enabled:
            return 0
        held = HeldContexts.of(self._state)
        if slot is None:
            chains = self._chains(request)
            self._asked = (request, chains)
            contexts = {role: context_of_prompt(request, role) for role in chains}
        else:
            holder = self._holders[slot]
            chains = holder.chains
            contexts = {role: held.context(slot, role, holder.writers) for role in chains}
        pages = (p for r in chains for p in self._full_pages(held, chains[r], contexts[r]))
        return sum(bool(held.page_owners[page]) for page in pages)

    # ------------------------------------------------------------------ between launches

    def serve(self) -> None:
        """Gives those that begin or go on what is there of their contexts.

        Whoever has read nothing yet by one of its roles is served with them.
        """
        waiting = [slot for slot, holder in self._holders.items() if holder.waits]
        active = host(self._state.active).tolist() if waiting else []
        if not any(active[slot] for slot in waiting):
            return
        held = HeldContexts.of(self._state)
        for slot, holder in self._holders.items():
            self._enter(held, slot, holder, ends=False)
        held = HeldContexts.of(self._state)
        for slot, holder in self._holders.items():
            if active[slot]:
                holder.waits = False
                for role in holder.chains:
                    if not held.num_pages[role, slot]:
                        self._find(held, slot, holder, role)

    def leave(self, slot: int) -> None:
        """The request of a slot has ended; its pages are given up."""
        self._give_up(slot)
        self._holders.pop(slot, None)

    def preempt(self, slot: int) -> None:
        """The pages of a slot are given up, until its request goes on."""
        self._give_up(slot)
        holder = self._holders.get(slot)
        if holder:
            holder.waits = holder.preempted = holder.trusted = True
            for chain in holder.chains.values():
                chain.pages.clear()

    def _give_up(self, slot: int) -> None:
        holder = self._holders.get(slot)
        if holder is None:
            ops.truncate_kv(self._state, slot, (0, 0, 0), self._loop.tokens_per_page)
            return
        held = HeldContexts.of(self._state)
        if holder.trusted:
            self._enter(held, slot, holder, ends=True)
            stamps = held.page_stamp
            give_up_all(self._state, slot, lambda page: self._index.holds(page, int(stamps[page])))
            return
        for page in give_up_all(self._state, slot, lambda page: False):
            self._index.drop(page)

    def _enter(self, held: HeldContexts, slot: int, holder: _Holder, *, ends: bool) -> None:
        """Lets others find what a request has read; `ends`: it gives its pages up now."""
        if not holder.trusted:
            return
        for role, chain in holder.chains.items():
            context = held.context(slot, role, holder.writers)
            self._entering.enter(held, slot, role, chain, context, ends=ends)

    # ------------------------------------------------------------------ what is there

    def _chains(self, request: SlotRequest) -> Chains:
        if self._asked and self._asked[0] is request:
            return self._asked[1]
        roles = {kv_role(r, self._loop.prm_kv) for r in roles_of(request) if r in self._loop.forwards}
        return {role: Chain.of(role, self._loop.tokens_per_page[role]) for role in sorted(roles)}

    def _full_pages(self, held: HeldContexts, chain: Chain, context: Context) -> list[int]:
        """The pages that hold the beginning of a context."""
        chain.extend(context.ids, context.final)
        pages: list[int] = []
        for digest in chain.digests[1 : max(context.most_found, 0) // chain.size + 1]:
            page = self._index.full_page(digest, held.page_stamp)
            if page is None:
                break
            pages.append(page)
        return pages

    def _find(self, held: HeldContexts, slot: int, holder: _Holder, role: Role) -> None:
        """Gives a role, which has read nothing, all that is there of its context."""
        chain, context = holder.chains[role], held.context(slot, role, holder.writers)
        pages = self._full_pages(held, chain, context)
        tokens = len(pages) * chain.size
        rest = context.ids[tokens : min(context.most_found, tokens + chain.size)].tolist()
        source, same = self._partial_page(held, chain, len(pages), rest)
        if pages:
            adopt_pages(self._state, role, slot, pages, tokens)
            chain.pages[:] = pages
        if same:
            taken = copy_page(self._state, self._loop.pages, role, slot, source, same)
            if taken is not None:
                self._index.drop(taken)
                tokens += same
        if not holder.preempted:
            holder.found[role] = tokens

    def _partial_page(
        self, held: HeldContexts, chain: Chain, num_pages: int, ids: list[int]
    ) -> tuple[int, int]:
        """A page that begins with `ids`, or some of them, behind full pages; with how many."""
        if not ids:
            return -1, 0
        if num_pages + 1 < len(chain.digests):  # of a page whose last token is to be read again
            page = self._index.full_page(chain.digests[num_pages + 1], held.page_stamp)
            if page is not None:
                return page, len(ids)
        return self._index.best_page(chain.digests[num_pages], ids, held.page_stamp)
