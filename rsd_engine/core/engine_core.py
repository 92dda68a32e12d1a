"""Puts requests into slots and reports events: admission, preemption and abort, between launches.

The core knows token ids only. It launches the program, reads the step log while the program runs,
and acts on what it finds once the launch has returned, so all executors share this code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from rsd_engine.core.admission import Admission, Queued
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.core.failures import Failure
from rsd_engine.core.groups.groups import Groups
from rsd_engine.core.host_steps import HostBridge, HostEnds, HostSteps
from rsd_engine.core.integrity import find_problems
from rsd_engine.core.log_reader import LogReader
from rsd_engine.core.mailbox import Mailbox
from rsd_engine.core.page_needs import is_stuck, pages_when_full
from rsd_engine.core.prefixes.cache import PrefixCache
from rsd_engine.core.remote_steps import RemoteRoles, RemoteSteps
from rsd_engine.core.running import RunningRequests
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.suspects import Suspects
from rsd_engine.core.watchdog import Watchdog
from rsd_engine.core.writer_contexts import Translate
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.program import OpFailed
from rsd_engine.loop.rsd import Loop
from rsd_engine.outputs import EngineDeadError
from rsd_kernels.state.enums import HostRequest, Phase, Role
from rsd_kernels.state.slots import SlotState

Result = TypeVar("Result")

STREAM_TICKS = 2  # of a launch that blocks while a request streams its tokens


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
        text_bridges: for each writer, used where the PRM or the other writer has another
            vocabulary; None if the device bridges.
        translate: for each writer, used where the other one has another vocabulary. Requests of
            mode RSD then have a `target`.
        text_ends: finds the tokens of a step's end that the device cannot; None if ends stay.
        remote: the roles that servers play; None if none does.
        enable_prefix_caching: whether what was read is found again.

    Attributes:
        max_running: how many requests may hold a slot at once. It starts as the number of slots;
            a benchmark may lower it between launches.
        prefixes: what was read, and is found again.
        num_waiting: calls that wait for pages between launches; no request starts meanwhile.
    """

    def __init__(
        self,
        loop: Loop,
        executor: Executor,
        mailbox: Mailbox,
        *,
        text_bridges: Mapping[Role, HostBridge] | None = None,
        translate: Mapping[Role, Translate] | None = None,
        text_ends: HostEnds | None = None,
        remote: RemoteRoles | None = None,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.loop = loop
        self.state: SlotState = loop.state
        self.device_type = self.state.length.device.type
        self.executor = executor
        self.ticks_per_launch = executor.ticks_per_launch
        self.max_running: int = self.state.num_slots
        self.num_waiting = 0
        self.num_preemptions = 0
        self.stats = LaunchStats()
        self._mailbox = mailbox
        self._log = LogReader(mailbox)
        self._watchdog = Watchdog(loop.state)
        self.prefixes = PrefixCache(loop, enabled=enable_prefix_caching)
        away = remote.roles if remote else ()
        self._slots = RunningRequests(loop, translate or {}, self.prefixes, away)
        self._suspects = Suspects(self._slots, self.state, loop.batch)
        self._death: Exception | None = None
        self._in_flight = False
        self._asked = threading.Event()  # set by `ask_to_return`
        self._returned_at: float | None = None
        self._pending: list[Event] = []  # collected, not yet returned
        self._host_steps = HostSteps(self._slots, loop, text_bridges or {}, text_ends)
        self._groups = Groups(self._slots, loop)
        self._remote_steps = RemoteSteps(self._slots, loop, remote, self.ask_to_return)
        self._lacks_pages = False  # nothing here goes on until a server gives a slot back
        self._admission = Admission(self._slots, loop, self._suspects, self.prefixes)
        self._queue = self._admission.queue
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
        return pages_when_full(request, self.loop)

    def add(self, key: int, request: SlotRequest, *, prompt: int = -1) -> None:
        """Queues a request.

        Args:
            key: the caller's name for it; must be new.
            request: what it asks for.
            prompt: the caller's name for its prompt, if other requests share that: the first of
                them reads it for those that follow.
        """
        self._queue[key] = Queued(request, prompt)
        if self._in_flight and len(self._queue) == 1:
            self._ask(HostRequest.RETURN if self._may_start else HostRequest.RETURN_WHEN_FREE)

    def abort(self, key: int) -> list[Event]:
        """Ends a queued or running request at once.

        Returns:
            The events of all requests up to now; the last one is the end of this request, unless
            its key is unknown or it had ended already.
        """
        if self._queue.pop(key, None) is not None:
            return [RequestDone(key, None, {}, 0)]
        if self._death:
            return [*self._slots.forget(key)]
        if any(running and running.key == key for running in self._slots):
            self._return_now()
        events = self._take_pending()
        events += [*self._groups.told_by(key), *self._slots.end(key)]
        self._slots.free()
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
        return bool(self._queue) or self._slots.count > 0

    @property
    def _may_start(self) -> bool:
        return self._slots.count < self.max_running

    def ask_to_return(self) -> None:
        """Makes the launch that is running, or about to start, return after its tick.

        Where all wait for servers, it ends that wait. May be called from any thread.
        """
        self._asked.set()
        self._ask(HostRequest.RETURN)

    def run_between(self, work: Callable[[], object]) -> list[Event]:
        """Runs `work` while no launch runs; returns the events since last time.

        Raises:
            EngineDeadError: the GPU has failed.
        """
        self._guarded(self._return_now)
        work()
        return self._take_pending()

    def check_integrity(self) -> list[str]:
        """What is wrong with pages, cursors and phases; a running launch ends after its tick."""
        self._return_now()
        running = [self.state.phase[slot] for slot, found in enumerate(self._slots) if found]
        lost = ["a running request has a free slot"] * sum(int(p) == Phase.FREE for p in running)
        return lost + find_problems(self.state, self.loop.tokens_per_page)

    def close(self) -> None:
        """Ends a running launch, frees the executor's graphs and leaves the servers."""
        if self._death is None:
            self._return_now()
            self.executor.close()
        self._remote_steps.close()

    # ------------------------------------------------------------------ one launch

    def next_events(self) -> list[Event]:
        """Runs until a step is decided or the launch returns; returns the events since last time.

        Before it starts a launch it admits the requests that fit.

        Raises:
            EngineDeadError: the GPU has failed, now or before.
        """
        return self._guarded(self._next_events)

    def _guarded(self, run: Callable[[], Result]) -> Result:
        """Runs a part of the loop; EngineDeadError if the GPU fails, or has failed."""
        try:
            if self._death is None:
                return run()
        except Exception as error:
            if self.device_type != "cuda":
                raise
            self._death = error
        raise EngineDeadError(
            f"the GPU failed, and the requests that ran are lost ({self._death}); "
            "start a new process with a new engine"
        ) from self._death

    def _next_events(self) -> list[Event]:
        returned = False
        if not self._in_flight:
            self._collect()  # records of a launch that ended with an error
            self._serve_back()
            self._slots.free()
            self._admission.resume()
            if not self.num_waiting:
                self._admission.admit(self.max_running, self._pending.append)
            self.prefixes.serve()
            self._remote_steps.send(self.state, self._pending.append)
            if self._slots.any_away and (self._lacks_pages or not self._slots.where(active=True)):
                self._wait_for_servers()
                return self._take_pending()
            returned = self._launch()
        while True:
            returned = returned or self._turn(self.executor.poll)
            self._collect()
            if returned:
                self._after_launch()
            # With nothing left to do the launch is about to return.
            if returned or (self._pending and self._has_requests):
                return self._take_pending()
            self._watchdog.look()

    def _serve_back(self) -> None:
        """Goes on with what servers have written and scored."""
        self._log.rewind()  # its records are collected; what servers wrote needs room
        back = self._remote_steps.take_back(self.state, self._pending.append)
        if back:
            self._lacks_pages = False
            int(self.state.log_head)  # host read: waits until the device has decided these steps
            self._collect()
            self._host_steps.serve(self.state, self._collect, self._pending.append, scored=back)

    def _wait_for_servers(self) -> None:
        """Until one has answered, or `ask_to_return`; not at all if there is something to tell."""
        self._returned_at = None
        if not self._pending:
            self._asked.wait()
        self._asked.clear()
        self._lacks_pages = False

    def _turn(self, move: Callable[[], bool | None]) -> bool:
        """One move of the executor; whether the launch has returned, as after a failed op."""
        try:
            return bool(move())
        except OpFailed as failure:
            self._blame(failure)
            return True

    def _launch(self) -> bool:
        state = self.state
        self._log.rewind()
        state.tick.zero_()
        state.tick_cap.fill_(self._most_ticks())
        waiting = bool(self._queue) or bool(self._slots.where(active=False))
        self._ask(HostRequest.RETURN_WHEN_FREE if waiting else HostRequest.NONE)
        if self._asked.is_set():
            self._ask(HostRequest.RETURN)
        state.running.fill_(1)
        if self._returned_at is not None:
            self.stats.gap_seconds += time.perf_counter() - self._returned_at
        self._watchdog.start()
        returned = self._turn(self.executor.start)
        self._in_flight = True
        self.stats.launches += 1
        return returned

    def _most_ticks(self) -> int:
        """Few where someone waits for tokens that are told only when the launch has ended."""
        if self._suspects.any_left():
            return 1
        waits = any(running and running.request.stream_tokens for running in self._slots)
        most = self.ticks_per_launch
        return min(most, STREAM_TICKS) if waits and self.executor.blocks else most

    def _after_launch(self) -> None:
        self._in_flight = False
        self._asked.clear()
        self.stats.ticks += int(self.state.tick)
        chosen = self._groups.choose(self._collect, self._pending.append)
        served = self._host_steps.serve(self.state, self._collect, self._pending.append)
        went_on = self._groups.go_on(self._pending.append)
        served = chosen or served or went_on or self._slots.any_left
        if not served and not self._pending and not self._was_asked() and is_stuck(self.state):
            self._lacks_pages = self.preempt_youngest() is None
        self._slots.free()
        self._returned_at = time.perf_counter() if self._has_requests else None

    def _return_now(self) -> None:
        """Ends a running launch; its events wait in `_pending`."""
        if not self._in_flight:
            return
        self.ask_to_return()
        while not self._turn(self.executor.poll):
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
            step, ends = record.event(running.key), bool(record.finish)
            steps = [step]
            if running.candidates:
                steps, ends = running.candidates.tell(record.slot, step)
            self._pending += steps
            self._suspects.clear(running.generation)
            if running.contexts:
                running.contexts.learn(step)
            if ends:
                self._pending.append(self._slots.leave(record.slot, record.finish))

    # ------------------------------------------------------------------ failures

    def _blame(self, failure: OpFailed) -> None:
        """Ends the request that an op failed for, if that is known, or begins to look for it."""
        self._collect()
        active = self._slots.where(active=True)
        if not active:
            raise failure
        if not self._suspects.any_left():
            self._suspects.accuse(active)
            return
        slot = self._suspects.alone()  # it ran for the second time
        told = Failure.caught("op", failure.op, failure.__cause__ or failure)
        self._pending.append(self._slots.fail(slot, told))

    # ------------------------------------------------------------------ pages

    def _was_asked(self) -> bool:
        """Whether the host may have ended the last launch, which then says nothing about pages."""
        asked = int(self._mailbox.host_request)
        left = asked == HostRequest.RETURN_WHEN_FREE and self._slots.any_left
        return asked == HostRequest.RETURN or left

    def preempt_youngest(self) -> int | None:
        """Takes the pages of the youngest active request; the oldest is never preempted.

        Lengths, phase, automata and counters stay, so resuming means reading its context again.
        Candidates that wait for others of their step come first. Returns the slot, or None if only
        the oldest active request holds pages.
        """
        self._return_now()
        slot = self._slots.next_to_preempt()
        if slot is not None:
            self._slots.preempt(slot)
            self.num_preemptions += 1
        return slot
