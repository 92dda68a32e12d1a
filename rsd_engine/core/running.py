"""The requests that hold a slot, on the host's side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rsd_engine.core.events import RequestDone, RoleCounters
from rsd_engine.core.failures import Failure
from rsd_engine.core.groups.candidates import Candidates
from rsd_engine.core.page_needs import roles_of
from rsd_engine.core.prefixes.cache import PrefixCache
from rsd_engine.core.slots import SlotRequest, fill_slot, reset_counters
from rsd_engine.core.writer_contexts import Translate, WriterContexts
from rsd_engine.loop.rsd import Loop
from rsd_engine.outputs import GuessCounts
from rsd_kernels.state.enums import Finish, GuessSource, Phase, Role

_WORKING = (Phase.DRAFT, Phase.SCORE, Phase.TARGET, Phase.GUESS, Phase.PROMPT)
_WAITING = (Phase.CANDIDATE, Phase.CHOICE)


@dataclass
class Running:
    """A request in its slot, or in several: one for each candidate for its step."""

    key: int
    request: SlotRequest
    arrival: int
    generation: int
    contexts: WriterContexts | None  # of writers with vocabularies of their own
    slots: tuple[int, ...]
    prompt: int = -1  # names the prompt that it shares with others
    waits: bool = False  # for the one that reads that prompt
    candidates: Candidates | None = None  # for its step
    call: Future[Any] | None = None  # to the server that the slot waits for
    called_at: float = 0.0  # seconds


class RunningRequests:
    """Who sits in which slot; a sequence of `Running`, None where a slot is free.

    Between launches it fills slots and empties them. While a launch runs only the device may write
    them, so a slot that a request has left is freed later, by `free`.

    Args:
        loop: whose slots they are.
        translate: for each writer, where the other one has another vocabulary.
        prefixes: what was read before, and is found again.
        remote: roles that servers play.
    """

    def __init__(
        self,
        loop: Loop,
        translate: Mapping[Role, Translate],
        prefixes: PrefixCache,
        remote: Collection[Role] = (),
    ) -> None:
        state = self._state = loop.state
        self._translate = translate
        self._prefixes = prefixes
        self._forwards, self._prm_kv = loop.forwards, loop.prm_kv
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

    def start(self, key: int, request: SlotRequest, *, prompt: int = -1) -> int:
        """Puts a request into free slots; returns the first. If it fails, `cancel` cleans up."""
        running = self._enter(key, request, prompt)
        self._fill(running)
        return running.slots[0]

    def start_waiting(self, key: int, request: SlotRequest, *, prompt: int) -> None:
        """Gives a request its slots; it goes on when they are forked from another one's."""
        running = self._enter(key, request, prompt)
        running.waits = True
        for slot in running.slots:
            self._reserve(slot, running)

    def read_prompt(self, running: Running) -> None:
        """Lets all roles read its prompt at once, for itself or for those that share it."""
        request, state = running.request, self._state
        if running.waits:
            self._fill(running)
            running.waits = False
        read = 0
        for role in roles_of(request):
            here = role in self._forwards and (role != Role.PRM or self._prm_kv == Role.PRM)
            if here and not (role == Role.TARGET and request.target):
                read |= 1 << role
        state.prompt_roles[running.slots[0]] = read
        state.phase[running.slots[0]] = Phase.PROMPT

    def _enter(self, key: int, request: SlotRequest, prompt: int) -> Running:
        free = [slot for slot, running in enumerate(self._slots) if running is None]
        slots = tuple(free[: request.num_slots])
        self._started += 1
        contexts = WriterContexts(request, self._translate) if request.target else None
        candidates = Candidates(request, slots) if request.has_candidates else None
        running = Running(
            key, request, self._started, self._started, contexts, slots, prompt,
            candidates=candidates,
        )  # fmt: skip
        for slot in slots:
            self._slots[slot] = running
            self._prefixes.join(slot, request, contexts)
        return running

    def _fill(self, running: Running) -> None:
        first, *others = running.slots
        fill_slot(
            self._state, first, running.request,
            generation=running.generation, arrival=running.arrival,
        )  # fmt: skip
        for slot in others:
            self._reserve(slot, running)
        if running.contexts:
            running.contexts.enter(self._state, first, Role.DRAFT)
        elif Role.TARGET in self._remote:
            self._state.separate_contexts[first] = 1
        self._prefixes.look_up(first)

    def _reserve(self, slot: int, running: Running) -> None:
        """For a slot that others are to be forked into: it waits, and nothing runs in it."""
        state = self._state
        reset_counters(state, slot)
        state.generation[slot] = running.generation
        state.arrival[slot] = running.arrival
        state.sample_index[slot] = running.request.sample_index
        state.group[slot] = -1
        state.phase[slot] = Phase.CANDIDATE
        state.active[slot] = 1

    @property
    def all(self) -> list[Running]:
        """Each once, in the order of arrival."""
        found = {running.arrival: running for running in self._slots if running}
        return [found[arrival] for arrival in sorted(found)]

    def reader_of(self, prompt: int) -> Running | None:
        """The request that has yet to read a prompt that others share."""
        sharers = [r for r in self.all if r.prompt == prompt >= 0 and not r.waits]
        if not sharers:
            return None
        phases = self._state.phase.tolist()
        return next((r for r in sharers if phases[r.slots[0]] == Phase.PROMPT), None)

    def cancel(self, key: int) -> None:
        """Empties the slots of a request that could not be started, and may be half filled."""
        for running in self._with_key(key):
            self._vacate(running)

    def end(self, key: int) -> list[RequestDone]:
        """Ends a request that is aborted."""
        return [self.leave(running.slots[0], None) for running in self._with_key(key)]

    def _with_key(self, key: int) -> list[Running]:
        return [running for running in self.all if running.key == key]

    def leave(
        self, slot: int, finish: Finish | None, failure: Failure | None = None
    ) -> RequestDone:
        """The end of the request in a slot."""
        running, state = self._slots[slot], self._state
        assert running is not None
        slots = list(running.slots)
        counters = {
            role: RoleCounters(
                tokens_read=int(state.tokens_read[role, slots].sum()),
                passes=int(state.passes[role, slots].sum()),
                seconds=int(state.nanoseconds[role, slots].sum()) * 1e-9,
                cached_tokens=sum(self._prefixes.found(slot, role) for slot in slots),
            )
            for role in roles_of(running.request)
            if role in self._roles
        }
        if finish == Finish.ERROR:
            for slot in slots:
                self._prefixes.distrust(slot)
        self._vacate(running)
        return RequestDone(
            running.key, finish, counters, int(state.nan_rewards[slots].sum()),
            guesses=self._guesses(slots), failure=failure,
            given_up=running.candidates.given_up if running.candidates else (),
        )  # fmt: skip

    def _guesses(self, slots: list[int]) -> dict[GuessSource, GuessCounts]:
        state = self._state
        made, kept = state.guesses_made[:, slots].sum(1), state.guesses_kept[:, slots].sum(1)
        counts = zip(GuessSource, made.tolist(), kept.tolist(), strict=True)
        return {source: GuessCounts(m, k) for source, m, k in counts if m}

    def fail(self, slot: int, failure: Failure) -> RequestDone:
        """Ends the request in a slot with an error."""
        return self.leave(slot, Finish.ERROR, failure)

    def forget(self, key: int) -> list[RequestDone]:
        """Ends a request without a look at the state: the device does not answer any more."""
        found = self._with_key(key)
        for running in found:
            self._clear(running)
        return [RequestDone(key, None, {}, 0) for _ in found]

    def free(self) -> None:
        """Frees the slots that requests have left, and gives up their pages."""
        for slot in self._left:
            self._prefixes.leave(slot)
            self._state.phase[slot] = Phase.FREE
            self._state.active[slot] = 0
            self._state.group[slot] = -1
        self._left.clear()

    def next_to_preempt(self) -> int | None:
        """The slot whose pages are given up first; None if only the oldest holds any.

        Candidates that wait for others need none until the choice. The oldest that works keeps its
        pages, so that something always goes on.
        """
        held = self._state.num_pages.sum(0).tolist()
        working = self.working
        oldest = min((self._order(slot) for slot in working), default=None)
        holding = [slot for running in self.all for slot in running.slots if held[slot]]
        waiting = [slot for slot in holding if slot not in working and self._is_active(slot)]
        others = [slot for slot in working if held[slot] and self._order(slot) != oldest]
        return max(waiting or others, default=None, key=self._order)

    @property
    def working(self) -> list[int]:
        """Slots that passes are to be made for."""
        phases = self._state.phase.tolist()
        return [slot for _, slot in self.where(active=True) if phases[slot] in _WORKING]

    def give_up_waiting(self) -> None:
        """Takes the pages of candidates that wait for others."""
        phases = self._state.phase.tolist()
        for running in self.all:
            for slot in running.slots:
                if phases[slot] == Phase.CANDIDATE:
                    self._prefixes.preempt(slot)

    def make_room(self, num_pages: int, slot: int) -> None:
        """Frees pages, at the expense of all but one slot."""
        self.free()
        while int(self._state.num_free) < num_pages:
            held = self._state.num_pages.sum(0).tolist()
            others = [s for _, s in self.where(active=True) if held[s] and s != slot]
            if not others:
                raise RuntimeError(f"{num_pages} pages are needed, and fewer are in the pool")
            self.preempt(max(others, key=self._order))

    def _order(self, slot: int) -> tuple[int, int]:
        """Of arrival, by slot where one request has several."""
        running = self._slots[slot]
        assert running is not None
        return running.arrival, slot

    def _is_active(self, slot: int) -> bool:
        return bool(self._state.active[slot])

    def preempt(self, slot: int, *, trusted: bool = True) -> None:
        """Takes its pages and its turn; lengths, phase, automata and counters stay.

        One that waits for other candidates has no turn to lose.

        trusted: what it has read is in order, as far as anybody knows.
        """
        if not trusted:
            self._prefixes.distrust(slot)
        self._prefixes.preempt(slot)
        if int(self._state.phase[slot]) not in _WAITING:
            self._state.active[slot] = 0

    def _vacate(self, running: Running) -> None:
        self._clear(running)
        self._left += running.slots

    def _clear(self, running: Running) -> None:
        for slot in running.slots:
            self._slots[slot] = None
        if running.call:
            running.call.cancel()
