"""K and V of earlier tokens, found again: every role's, between two launches.

Nothing is kept back for it. What a request has read is entered before it gives its pages up, and
they wait on the stack of free pages, below all others, until somebody takes them. A request that
begins, or goes on after a preemption, becomes an owner of the full pages that hold the beginning of
its context, whether they are free or in use, and gets a copy of the beginning of one page more.
It reads the rest, and writes what it would have written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rsd_engine.core.page_needs import roles_of
from rsd_engine.core.prefixes.chain import Chain
from rsd_engine.core.prefixes.contexts import Context, HeldContexts, prompt_of
from rsd_engine.core.prefixes.entering import Entering
from rsd_engine.core.prefixes.index import PrefixIndex
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.writer_contexts import WriterContexts
from rsd_engine.loop.rsd import Loop
from rsd_engine.memory.shared_pages import adopt_pages, copy_page, give_up_all
from rsd_kernels import ops
from rsd_kernels.schedule.rules import kv_role
from rsd_kernels.state.columns import host
from rsd_kernels.state.enums import Phase, Role

Chains = Mapping[Role, Chain]
_IDLE = (Phase.FREE, Phase.DONE, Phase.CANDIDATE)  # slots in which nothing is to be read


@dataclass
class _Holder:
    """A request, as far as it is in one slot.

    Attributes:
        writers: contexts of draft and target, if they have one each.
        chains: of the roles that read for it.
        found: tokens that each role found, as long as it has never given its pages up.
        waits: for what is to be found.
        is_new: whether it has never given its pages up.
        trusted: whether others may find what it has read.
    """

    writers: WriterContexts | None
    chains: Chains
    found: dict[Role, int] = field(default_factory=dict)
    waits: bool = False
    is_new: bool = True
    trusted: bool = True


class PrefixCache:
    """The cache of one engine.

    Args:
        loop: whose pages they are.
        enabled: without it, no request takes part.
    """

    def __init__(self, loop: Loop, *, enabled: bool) -> None:
        self.enabled = enabled
        self._loop = loop
        self._state = loop.state
        self._index = PrefixIndex()
        self._entering = Entering(loop.state, loop.tokens_per_page, self._index)
        self._holders: dict[int, _Holder] = {}  # by slot
        self._last: tuple[object, Chains] | None = None  # a prompt, and its hashes

    def join(self, slot: int, request: SlotRequest, writers: WriterContexts | None) -> None:
        """A request has got a slot, which holds no pages."""
        if self.enabled:
            self._holders[slot] = _Holder(writers, self._chains(request))

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Slots have become copies of another one, and own its pages, too."""
        for target in targets:
            if source in self._holders and target in self._holders:
                forked, holder = self._holders[source], self._holders[target]
                holder.chains = {role: chain.copy() for role, chain in forked.chains.items()}
                holder.trusted = holder.trusted and forked.trusted

    def look_up(self, slot: int) -> None:
        """A slot is to read its context from the beginning; it is served once it is active."""
        if slot in self._holders:
            self._holders[slot].waits = True

    def found(self, slot: int, role: Role) -> int:
        """Tokens of the prompt that a role of a slot need not read."""
        holder = self._holders.get(slot)
        return holder.found.get(role, 0) if holder else 0

    def distrust(self, slot: int) -> None:
        """Nobody is to find what a slot has read: its request has failed."""
        if slot in self._holders:
            self._holders[slot].trusted = False

    def reset(self) -> None:
        """Nothing that has been read until now is found any more."""
        self._index.clear()
        for slot in self._holders:
            self.distrust(slot)

    def holds(self, page: int) -> bool:
        """Whether what is in a page may be found."""
        return self._index.holds(page, int(self._state.page_stamp[page]))

    # ------------------------------------------------------------------ between launches

    def serve(self) -> None:
        """Gives the slots that wait for it what is there of their contexts.

        Roles of other slots that have read nothing yet are served with them.
        """
        if not any(holder.waits for holder in self._holders.values()):
            return
        active, phases = host(self._state.active), host(self._state.phase)
        reading = [s for s in self._holders if active[s] and phases[s] not in _IDLE]
        if not any(self._holders[slot].waits for slot in reading):
            return
        held = HeldContexts.of(self._loop)
        for slot in self._holders:
            self._enter(held, slot, ends=False)
        held = HeldContexts.of(self._loop)
        for slot in reading:
            self._holders[slot].waits = False
            for role in self._holders[slot].chains:
                if not held.num_pages[role, slot]:
                    self._find(held, slot, role)

    def leave(self, slot: int) -> None:
        """The request of a slot has ended; its pages are given up."""
        self._give_up(slot)
        self._holders.pop(slot, None)

    def preempt(self, slot: int) -> None:
        """The pages of a slot are given up; it looks them up when it goes on."""
        self._give_up(slot)
        holder = self._holders.get(slot)
        if holder:
            holder.waits = holder.trusted = True
            holder.is_new = False
            for chain in holder.chains.values():
                chain.pages.clear()

    def discard(self, slots: Sequence[int]) -> None:
        """Slots give their pages up, since others hold the same text; they may get new ones.

        A page that is free then is not found any more: nobody knows whether it is still true.
        """
        if not slots:
            return
        num_pages, table = host(self._state.num_pages), host(self._state.page_table)
        pages = set[int]()
        for slot in [slot for slot in slots if num_pages[:, slot].any()]:
            for role in Role:
                pages.update(table[role, slot, : num_pages[role, slot]].tolist())
            ops.truncate_kv(self._state, slot, (0, 0, 0), self._loop.tokens_per_page)
        if pages:
            owners = host(self._state.page_owners)
            for page in [page for page in pages if not owners[page]]:
                self._index.drop(page)

    def shared_pages(self, request: SlotRequest, slot: int | None = None) -> int:
        """How many of the pages that a request needs are there, owned by others.

        slot: the request's, if it has one.
        """
        if not self.enabled:
            return 0
        held = HeldContexts.of(self._loop)
        pages: list[int] = []
        if slot is None:
            for role, chain in self._chains(request).items():
                pages += self._full_pages(held, chain, prompt_of(request, role))
        else:
            holder = self._holders[slot]
            for role, chain in holder.chains.items():
                pages += self._full_pages(held, chain, held.context(slot, role, holder.writers))
        return sum(bool(held.page_owners[page]) for page in pages)

    def _give_up(self, slot: int) -> None:
        holder = self._holders.get(slot)
        if holder is None:
            ops.truncate_kv(self._state, slot, (0, 0, 0), self._loop.tokens_per_page)
            return
        held = HeldContexts.of(self._loop)
        self._enter(held, slot, ends=True)
        stamps = held.page_stamp
        freed = give_up_all(
            self._state, slot,
            lambda page: holder.trusted and self._index.holds(page, int(stamps[page])),
        )  # fmt: skip
        if not holder.trusted:
            for page in freed:
                self._index.drop(page)

    def _enter(self, held: HeldContexts, slot: int, *, ends: bool) -> None:
        holder = self._holders[slot]
        if holder.trusted:
            for role, chain in holder.chains.items():
                if held.num_pages[role, slot]:
                    context = held.context(slot, role, holder.writers)
                    self._entering.enter(held, slot, role, chain, context, ends=ends)

    # ------------------------------------------------------------------ what is there

    def _chains(self, request: SlotRequest) -> Chains:
        """With the hashes of its prompt, which the samples of a request share."""
        passes = [role for role in roles_of(request) if role in self._loop.forwards]
        roles = tuple(sorted({kv_role(role, self._loop.prm_kv) for role in passes}))
        target = request.target or request
        prompts = (roles, request.prompt, target.prompt, request.prm_prompt)
        if self._last is None or self._last[0] != prompts:
            chains = {role: Chain.of(role, self._loop.tokens_per_page[role]) for role in roles}
            for role, chain in chains.items():
                prompt = prompt_of(request, role)
                chain.extend(prompt.ids, prompt.final)
            self._last = prompts, chains
        return {role: chain.copy() for role, chain in self._last[1].items()}

    def _full_pages(self, held: HeldContexts, chain: Chain, context: Context) -> list[int]:
        """The pages that hold the beginning of a context."""
        changed = chain.first_change(context.ids)
        if changed is not None:
            chain.cut(changed // chain.size)
        chain.extend(context.ids, context.final)
        pages: list[int] = []
        for digest in chain.digests[1 : max(context.most_found, 0) // chain.size + 1]:
            page = self._index.full_page(digest, held.page_stamp)
            if page is None:
                break
            pages.append(page)
        return pages

    def _find(self, held: HeldContexts, slot: int, role: Role) -> None:
        """Gives a role that has read nothing what is there of its context."""
        holder = self._holders[slot]
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
        if holder.is_new:
            holder.found[role] = tokens

    def _partial_page(
        self, held: HeldContexts, chain: Chain, num_full: int, ids: list[int]
    ) -> tuple[int, int]:
        """A page that begins with `ids`, or some of them, behind full pages; with how many."""
        if not ids:
            return -1, 0
        if num_full + 1 < len(chain.digests):  # all of it: its last token is to be read again
            page = self._index.full_page(chain.digests[num_full + 1], held.page_stamp)
            if page is not None:
                return page, len(ids)
        return self._index.best_page(chain.digests[num_full], ids, held.page_stamp)
