"""Puts requests into slots and reports events: admission, preemption and abort, between launches.

The core knows token ids only. It launches the program, reads the step log while the program runs,
and acts on what it finds once the launch has returned, so all executors share this code.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from rsd_engine.core.events import Event, PromptRead, RequestDone, RoleCounters
from rsd_engine.core.host_steps import HostBridge, HostEnds, HostSteps
from rsd_engine.core.log_reader import LogReader
from rsd_engine.core.mailbox import Mailbox
from rsd_engine.core.page_needs import ROLES_OF_MODE, pages_at, pages_for_longest_step
from rsd_engine.core.prompt_logprobs import read_prompt
from rsd_engine.core.slots import SlotRequest, fill_slot
from rsd_engine.core.watchdog import Watchdog
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.rsd import Loop
from rsd_kernels import ops
from rsd_kernels.state.enums import NUM_ROLES, Finish, HostRequest, Mode, Phase, Role
from rsd_kernels.state.slots import SlotState

STREAM_TICKS = 2  # of a launch that blocks while a request streams its tokens


@dataclass
class _Running:
    """A request in a slot, on the host's side."""

    key: int
    request: SlotRequest
    arrival: int
    generation: int


@dataclass
class LaunchStats:
    """Counts of all launches so far."""

    launches: int = 0
    ticks: int = 0
    gap_seconds: float = 0.0  # from the end of a launch to the next one, while requests were there


class EngineCore:
    """Runs requests given as token ids.

    Args:
        loop: the state, the tables and the models.
        executor: runs the loop's program.
        mailbox: the host's side of the state's log and request word.
        text_bridge: used when the PRM's tokenizer differs; None if the device bridges.
        text_ends: finds the tokens of a step's end that the device cannot; None if ends stay.

    Attributes:
        max_running: how many requests may hold a slot at once. It starts as the number of slots;
            a benchmark may lower it between launches.
    """

    def __init__(
        self,
        loop: Loop,
        executor: Executor,
        mailbox: Mailbox,
        *,
        text_bridge: HostBridge | None = None,
        text_ends: HostEnds | None = None,
    ) -> None:
        self.loop = loop
        self.state: SlotState = loop.state
        self.executor = executor
        self.ticks_per_launch = executor.ticks_per_launch
        self.max_running: int = self.state.num_slots
        self.num_preemptions = 0
        self.stats = LaunchStats()
        self._mailbox = mailbox
        self._log = LogReader(mailbox)
        self._watchdog = Watchdog(loop.state)
        self._in_flight = False
        self._asked = False  # by `ask_to_return`
        self._returned_at: float | None = None
        self._pending: list[Event] = []  # collected, not yet returned
        self._leaving: list[int] = []  # slots to be freed when the launch has returned
        self._host_steps = HostSteps(loop.tokens_per_page, text_bridge, text_ends)
        self._queue: deque[tuple[int, SlotRequest]] = deque()
        self._slots: list[_Running | None] = [None] * self.state.num_slots
        self._arrivals = 0
        self._generation = 0
        for stamps in (self.state.tick_nanoseconds, self.state.idle_nanoseconds):
            stamps.zero_()  # an executor that warms up ends ticks that never began

    # ------------------------------------------------------------------ requests

    def check(self, request: SlotRequest) -> str | None:
        """Why this request can never run, even alone in the pool; None if it can."""
        need = self.pages_for_request(request)
        total = self.state.free_pages.shape[0]
        if need > total:
            return f"it may need {need} KV pages and the pool has {total}"
        return None

    def pages_for_request(self, request: SlotRequest) -> int:
        """KV pages that all its roles hold when its output is as long as it may become."""
        return pages_at(request, request.length_limit, self.loop.tokens_per_page)

    def add(self, key: int, request: SlotRequest) -> None:
        """Queues a request. `key` is the caller's name for it and must be new."""
        self._queue.append((key, request))
        if self._in_flight and len(self._queue) == 1:
            self._ask(HostRequest.RETURN if self._may_start else HostRequest.RETURN_WHEN_FREE)

    def abort(self, key: int) -> list[Event]:
        """Ends a queued or running request at once.

        Returns:
            The events of all requests up to now; the last one is the end of this request, unless
            its key is unknown or it had ended already.
        """
        for i, (queued, _) in enumerate(self._queue):
            if queued == key:
                del self._queue[i]
                return [RequestDone(key, None, {}, 0)]
        if any(running and running.key == key for running in self._slots):
            self._return_now()
        events = self._take_pending()
        for slot, running in enumerate(self._slots):
            if running and running.key == key:
                self._release(slot)
                events.append(self._leave(slot, None))
        self._free_slots()
        return events

    @property
    def has_work(self) -> bool:
        return self._has_requests or bool(self._pending)

    @property
    def in_flight(self) -> bool:
        """Whether a launch runs by itself; only the device writes to the state meanwhile."""
        return self._in_flight

    @property
    def slot_keys(self) -> list[int | None]:
        """The key of the request in each slot, None where there is none."""
        return [running.key if running else None for running in self._slots]

    @property
    def _has_requests(self) -> bool:
        return bool(self._queue) or any(self._slots)

    @property
    def _may_start(self) -> bool:
        return sum(running is not None for running in self._slots) < self.max_running

    def ask_to_return(self) -> None:
        """Makes the launch that is running, or about to start, return after its tick.

        May be called from any thread.
        """
        self._asked = True
        self._ask(HostRequest.RETURN)

    def close(self) -> None:
        """Ends a running launch and frees the executor's graphs."""
        self._return_now()
        self.executor.close()

    # ------------------------------------------------------------------ one launch

    def next_events(self) -> list[Event]:
        """Runs until a step is decided or the launch returns; returns the events since last time.

        Before it starts a launch it admits the requests that fit.
        """
        if not self._in_flight:
            self._collect()  # records of a launch that ended with an error
            self._free_slots()
            self._resume()
            self._admit()
            self._launch()
        while True:
            returned = self.executor.poll()
            self._collect()
            if returned:
                self._after_launch()
            # With nothing left to do the launch is about to return.
            if returned or (self._pending and self._has_requests):
                return self._take_pending()
            self._watchdog.look()

    def _launch(self) -> None:
        state = self.state
        self._log.rewind()
        state.tick.zero_()
        state.tick_cap.fill_(self._most_ticks())
        waiting = bool(self._queue) or bool(self._slots_with(active=False))
        self._ask(HostRequest.RETURN_WHEN_FREE if waiting else HostRequest.NONE)
        if self._asked:
            self._ask(HostRequest.RETURN)
        state.running.fill_(1)
        if self._returned_at is not None:
            self.stats.gap_seconds += time.perf_counter() - self._returned_at
        self._watchdog.start()
        self.executor.start()
        self._in_flight = True
        self.stats.launches += 1

    def _most_ticks(self) -> int:
        """Few where someone waits for tokens that are told only when the launch has ended."""
        waits = any(running and running.request.stream_tokens for running in self._slots)
        most = self.ticks_per_launch
        return min(most, STREAM_TICKS) if waits and self.executor.blocks else most

    def _after_launch(self) -> None:
        self._in_flight = self._asked = False
        self.stats.ticks += int(self.state.tick)
        served = self._host_steps.serve(self.state)
        if served:
            self._collect()
        if not served and not self._pending and not self._was_asked() and self._is_stuck():
            self.preempt_youngest()
        self._free_slots()
        self._returned_at = time.perf_counter() if self._has_requests else None

    def _return_now(self) -> None:
        """Ends a running launch; its events wait in `_pending`."""
        if not self._in_flight:
            return
        self.ask_to_return()
        while not self.executor.poll():
            self._watchdog.look()
        self._collect()
        self._after_launch()

    def _ask(self, request: HostRequest) -> None:
        self._mailbox.host_request.fill_(request)

    def _take_pending(self) -> list[Event]:
        events, self._pending = self._pending, []
        return events

    def _collect(self) -> None:
        """Moves new records from the log to `_pending`, as events."""
        for record in self._log.take():
            running = self._slots[record.slot]
            if running is None or record.generation != running.generation:
                continue
            self._pending.append(record.event(running.key))
            if record.finish:
                self._pending.append(self._leave(record.slot, record.finish))

    def _leave(self, slot: int, finish: Finish | None) -> RequestDone:
        running = self._slots[slot]
        assert running is not None
        state = self.state
        counters = {
            role: RoleCounters(
                tokens_read=int(state.tokens_read[role, slot]),
                passes=int(state.passes[role, slot]),
                seconds=int(state.nanoseconds[role, slot]) * 1e-9,
            )
            for role in ROLES_OF_MODE[running.request.mode]
        }
        done = RequestDone(running.key, finish, counters, int(state.nan_rewards[slot]))
        self._leaving.append(slot)
        self._slots[slot] = None
        return done

    def _free_slots(self) -> None:
        """Frees the slots of ended requests: while a launch runs only the device may write them."""
        for slot in self._leaving:
            self.state.phase[slot] = Phase.FREE
            self.state.active[slot] = 0
        self._leaving.clear()

    # ------------------------------------------------------------------ admission and pages

    def _admit(self) -> None:
        while self._queue and self._may_start:
            if self._slots_with(active=False):
                return  # preempted requests are older and go first
            _, request = self._queue[0]
            if not self._has_room(request, len(request.prompt)):
                return
            key, request = self._queue.popleft()
            slot = self._slots.index(None)
            self._generation += 1
            self._arrivals += 1
            fill_slot(
                self.state, slot, request, generation=self._generation, arrival=self._arrivals
            )
            self._slots[slot] = _Running(key, request, self._arrivals, self._generation)
            if request.prompt_logprobs >= 0:
                role = Role.DRAFT if request.mode == Mode.DRAFT else Role.TARGET
                read = read_prompt(self.loop, slot, role, request.prompt_logprobs)
                self._pending.append(PromptRead(key, read))

    def _resume(self) -> None:
        """Resumes preempted requests, oldest first, as far as pages for a longest step are free."""
        for running, slot in sorted(
            self._slots_with(active=False), key=lambda found: found[0].arrival
        ):
            if not self._has_room(running.request, int(self.state.length[slot])):
                return
            self.state.active[slot] = 1

    def _has_room(self, request: SlotRequest, length: int) -> bool:
        """Whether pages for its tokens and one longest step are free, or it would run alone.

        Nothing is admitted while a running request lacks pages: it would take the pages just freed.
        """
        active = self._slots_with(active=True)
        if not active:
            return True
        lacking = self.state.lacks_pages.tolist()
        if any(lacking[slot] for _, slot in active):
            return False
        need = pages_for_longest_step(request, length, self.loop.tokens_per_page)
        return need <= int(self.state.num_free)

    def _slots_with(self, *, active: bool) -> list[tuple[_Running, int]]:
        """The requests that are active, or that are preempted, and their slots."""
        flags = self.state.active.tolist()  # one copy for all slots
        return [(r, s) for s, r in enumerate(self._slots) if r and bool(flags[s]) == active]

    def _was_asked(self) -> bool:
        """Whether the host may have ended the last launch, which then says nothing about pages."""
        asked = int(self._mailbox.host_request)
        left = asked == HostRequest.RETURN_WHEN_FREE and bool(self._leaving)
        return asked == HostRequest.RETURN or left

    def _is_stuck(self) -> bool:
        """Whether the last launch found a slot that lacks pages and no slot that could go on.

        A launch that ended at its tick cap proves nothing: others may go on in the next one.
        """
        state = self.state
        went_on = int(state.pass_role) != NUM_ROLES or int(state.tick) > int(state.tick_cap)
        return not went_on and bool(state.lacks_pages.any())

    def preempt_youngest(self) -> int | None:
        """Takes the pages of the youngest active request; the oldest is never preempted.

        Lengths, phase, automata and counters stay, so resuming means reading its context again.
        Returns the slot, or None if there is only one active request.
        """
        self._return_now()
        active = self._slots_with(active=True)
        if len(active) < 2:
            return None
        _, slot = max(active, key=lambda found: found[0].arrival)
        self._release(slot)
        self.state.active[slot] = 0
        self.num_preemptions += 1
        return slot

    def _release(self, slot: int) -> None:
        ops.truncate_kv(self.state, slot, (0, 0, 0), self.loop.tokens_per_page)
