"""Which requests get a slot, and which go on after a preemption, between launches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from rsd_engine.core.events import Event, PromptRead, RequestDone
from rsd_engine.core.failures import Failure
from rsd_engine.core.page_needs import pages_for_longest_step
from rsd_engine.core.prefixes.cache import PrefixCache
from rsd_engine.core.prompt_logprobs import read_prompt
from rsd_engine.core.running import RunningRequests
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.suspects import Suspects
from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.enums import Finish


@dataclass(frozen=True)
class Queued:
    """A request without a slot."""

    request: SlotRequest
    prompt: int  # names the prompt that it shares with others; -1: with none


class Admission:
    """The queue, and the way from it into the slots.

    Args:
        slots: the requests that run.
        loop: whose slots and pages they take.
        suspects: after a failure they go on alone, and nobody else starts.
        prefixes: pages that requests share with others.

    Attributes:
        queue: requests without a slot by their keys; the first is next.
    """

    def __init__(
        self, slots: RunningRequests, loop: Loop, suspects: Suspects, prefixes: PrefixCache
    ) -> None:
        self.queue: OrderedDict[int, Queued] = OrderedDict()
        self._slots = slots
        self._loop = loop
        self._state = loop.state
        self._suspects = suspects
        self._prefixes = prefixes

    def admit(self, max_running: int, tell: Callable[[Event], None]) -> None:
        """Starts requests in the order of the queue, as far as there are slots and pages."""
        self._give_readers()
        while self.queue:
            key, queued = next(iter(self.queue.items()))
            if not self._has_slots(queued.request, max_running):
                return
            if self._suspects.any_left() or self._slots.where(active=False):
                return  # preempted requests are older and go first
            if not self._has_room(queued.request, 0):
                return
            del self.queue[key]
            try:
                self._start(key, queued, tell)
            except Exception as error:
                failure = Failure.caught("admission", "starting the request", error)
                self._slots.cancel(key)
                self._slots.free()
                tell(RequestDone(key, Finish.ERROR, {}, 0, failure=failure))

    def _has_slots(self, request: SlotRequest, max_running: int) -> bool:
        """A request with more candidates than slots may run at once runs alone."""
        taken = self._slots.count
        return taken == 0 or taken + request.num_slots <= max_running

    def _give_readers(self) -> None:
        """Where the request that was to read a prompt has left, another one reads it."""
        for running in self._slots.all:
            if running.waits and self._slots.reader_of(running.prompt) is None:
                self._slots.read_prompt(running)

    def _start(self, key: int, queued: Queued, tell: Callable[[Event], None]) -> None:
        request, prompt = queued.request, queued.prompt
        if self._slots.reader_of(prompt) is not None:
            self._slots.start_waiting(key, request, prompt=prompt)
            return
        slot = self._slots.start(key, request, prompt=prompt)
        if request.prompt_logprobs >= 0:
            contexts = self._slots.contexts_of(slot)
            role, read = read_prompt(self._loop, slot, request, contexts)
            tell(PromptRead(key, role, read))
        running = self._slots[slot]
        shared = prompt >= 0 and any(other.prompt == prompt for other in self.queue.values())
        if running and (shared or running.candidates):
            self._slots.read_prompt(running)

    def resume(self) -> None:
        """Resumes preempted requests, oldest first, as far as pages for a longest step are free."""
        if self._suspects.any_left():
            self._suspects.resume_next()
            return
        state = self._state
        for running, slot in sorted(
            self._slots.where(active=False), key=lambda found: found[0].arrival
        ):
            written = int(state.length[slot]) - int(state.prompt_length[slot])
            if running.contexts:
                written = max(written, running.contexts.output_length)
            if not self._has_room(running.request, written, slot):
                return
            state.active[slot] = 1

    def _has_room(self, request: SlotRequest, output: int, slot: int | None = None) -> bool:
        """Whether pages for its output and one longest step are there, or it would run alone.

        Those that it is to share with others take none of the free ones.

        Nothing is admitted while a running request lacks pages: it would take the pages just freed.
        """
        working = self._slots.working
        if not working and not self._slots.any_away:
            self._slots.give_up_waiting()
            return True
        lacking = self._state.lacks_pages.tolist()
        if any(lacking[slot] for slot in working):
            return False
        lacking_pages = pages_for_longest_step(request, output, self._loop) - int(
            self._state.num_free
        )
        return lacking_pages <= 0 or lacking_pages <= self._prefixes.shared_pages(request, slot)
