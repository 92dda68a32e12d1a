"""The requests that hold a slot, on the host's side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rsd_engine.core.events import RequestDone, RoleCounters
from rsd_engine.core.failures import Failure
from rsd_engine.core.page_needs import roles_of
from rsd_engine.core.slots import SlotRequest, fill_slot
from rsd_engine.core.writer_contexts import Translate, WriterContexts
from rsd_engine.loop.rsd import Loop
from rsd_engine.outputs import GuessCounts
from rsd_kernels import ops
from rsd_kernels.state.enums import Finish, GuessSource, Phase, Role


@dataclass
class Running:
    """A request in a slot."""

    key: int
    request: SlotRequest
    arrival: int
    generation: int
    contexts: WriterContexts | None  # of writers with vocabularies of their own
    call: Future[Any] | None = None  # to the server that the slot waits for
    called_at: float = 0.0  # seconds


class RunningRequests:
    """Who sits in which slot; a sequence of `Running`, None where a slot is free.

    Between launches it fills slots and empties them. While a launch runs only the device may write
    them, so a slot that a request has left is freed later, by `free`.

    Args:
        loop: whose slots they are.
        translate: for each writer, where the other one has another vocabulary.
        remote: roles that servers play.
    """

    def __init__(
        self,
        loop: Loop,
        translate: Mapping[Role, Translate],
        remote: Collection[Role] = (),
    ) -> None:
        state = self._state = loop.state
        self._translate = translate
        self._tokens_per_page = loop.tokens_per_page
        self._remote = remote
        self._roles = {*loop.forwards, *remote}
        self._slots: list[Running | None] = [None] * state.num_slots
        self._left: list[int] = []  # slots to be freed
        self._started = 0  # requests so far

    def __getitem__(self, slot: int) -> Running | None:
        return self._slots[slot]

    def __iter__(self) -> Iterator[Running | None]:
        return iter(self._slots)

    @property
    def any_left(self) -> bool:
        """Whether a request has left a slot that is not freed yet."""
        return bool(self._left)

    @property
    def count(self) -> int:
        return sum(running is not None for running in self._slots)

    def where(self, *, active: bool) -> list[tuple[Running, int]]:
        """The requests that are active, or that are preempted, and their slots.

        Those that wait for a server are neither.
        """
        flags = self._state.active.tolist()  # one copy for all slots
        here = [(r, s) for s, r in enumerate(self._slots) if r and r.call is None]
        return [(running, slot) for running, slot in here if bool(flags[slot]) == active]

    @property
    def any_away(self) -> bool:
        """Whether a request waits for a server."""
        return any(running and running.call for running in self._slots)

    def contexts_of(self, slot: int) -> WriterContexts | None:
        """Of the writers of the request in a slot, if they have one each."""
        running = self._slots[slot]
        return running.contexts if running else None

    def start(self, key: int, request: SlotRequest) -> int:
        """Puts a request into a free slot, which it returns. If it fails, `cancel` cleans up."""
        slot = self._slots.index(None)
        self._started += 1
        contexts = WriterContexts(request, self._translate) if request.target else None
        self._slots[slot] = Running(key, request, self._started, self._started, contexts)
        fill_slot(self._state, slot, request, generation=self._started, arrival=self._started)
        if contexts:
            contexts.enter(self._state, slot, Role.DRAFT)
        elif Role.TARGET in self._remote:
            self._state.separate_contexts[slot] = 1
        return slot

    def cancel(self, key: int) -> None:
        """Empties the slot of a request that could not be started, and may be half filled."""
        for slot, running in enumerate(self._slots):
            if running and running.key == key:
                self.release(slot)
                self._vacate(slot)

    def leave(
        self, slot: int, finish: Finish | None, failure: Failure | None = None
    ) -> RequestDone:
        """The end of the request in a slot."""
        running, state = self._slots[slot], self._state
        assert running is not None
        counters = {
            role: RoleCounters(
                tokens_read=int(state.tokens_read[role, slot]),
                passes=int(state.passes[role, slot]),
                seconds=int(state.nanoseconds[role, slot]) * 1e-9,
            )
            for role in roles_of(running.request)
            if role in self._roles
        }
        self._vacate(slot)
        return RequestDone(
            running.key, finish, counters, int(state.nan_rewards[slot]),
            guesses=self._guesses(slot), failure=failure,
        )  # fmt: skip

    def _guesses(self, slot: int) -> dict[GuessSource, GuessCounts]:
        made, kept = self._state.guesses_made[:, slot], self._state.guesses_kept[:, slot]
        counts = zip(GuessSource, made.tolist(), kept.tolist(), strict=True)
        return {source: GuessCounts(m, k) for source, m, k in counts if m}

    def fail(self, slot: int, failure: Failure) -> RequestDone:
        """Ends the request in a slot with an error."""
        self.release(slot)
        return self.leave(slot, Finish.ERROR, failure)

    def forget(self, key: int) -> list[RequestDone]:
        """Ends a request without a look at the state: the device does not answer any more."""
        found = [slot for slot, running in enumerate(self._slots) if running and running.key == key]
        for slot in found:
            self._clear(slot)
        return [RequestDone(key, None, {}, 0) for _ in found]

    def free(self) -> None:
        """Frees the slots that requests have left."""
        for slot in self._left:
            self._state.phase[slot] = Phase.FREE
            self._state.active[slot] = 0
        self._left.clear()

    def release(self, slot: int) -> None:
        """Takes all pages of a slot."""
        ops.truncate_kv(self._state, slot, (0, 0, 0), self._tokens_per_page)

    def preempt(self, slot: int) -> None:
        """Takes its pages and its turn; lengths, phase, automata and counters stay."""
        self.release(slot)
        self._state.active[slot] = 0

    def _vacate(self, slot: int) -> None:
        self._clear(slot)
        self._left.append(slot)

    def _clear(self, slot: int) -> None:
        running, self._slots[slot] = self._slots[slot], None
        if running and running.call:
            running.call.cancel()
