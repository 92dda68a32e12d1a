"""Which requests get a slot, and which go on after a preemption, between launches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from rsd_engine.core.events import Event, PromptRead, RequestDone
from rsd_engine.core.failures import Failure
from rsd_engine.core.page_needs import pages_for_longest_step
from rsd_engine.core.prompt_logprobs import read_prompt
from rsd_engine.core.running import RunningRequests
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.suspects import Suspects
from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.enums import Finish


class Admission:
    """The queue, and the way from it into the slots.

    Args:
        slots: the requests that run.
        loop: whose slots and pages they take.
        suspects: after a failure they go on alone, and nobody else starts.

    Attributes:
        queue: requests without a slot by their keys; the first is next.
    """

    def __init__(self, slots: RunningRequests, loop: Loop, suspects: Suspects) -> None:
        self.queue: OrderedDict[int, SlotRequest] = OrderedDict()
        self._slots = slots
        self._loop = loop
        self._state = loop.state
        self._suspects = suspects

    def admit(self, max_running: int, tell: Callable[[Event], None]) -> None:
        """Starts requests in the order of the queue, as far as there are slots and pages."""
        while self.queue and self._slots.count < max_running:
            if self._suspects.any_left() or self._slots.where(active=False):
                return  # preempted requests are older and go first
            key, request = next(iter(self.queue.items()))
            if not self._has_room(request, 0):
                return
            del self.queue[key]
            try:
                self._start(key, request, tell)
            except Exception as error:
                failure = Failure.caught("admission", "starting the request", error)
                self._slots.cancel(key)
                self._slots.free()
                tell(RequestDone(key, Finish.ERROR, {}, 0, failure=failure))

    def _start(self, key: int, request: SlotRequest, tell: Callable[[Event], None]) -> None:
        slot = self._slots.start(key, request)
        if request.prompt_logprobs >= 0:
            contexts = self._slots.contexts_of(slot)
            role, read = read_prompt(self._loop, slot, request, contexts)
            tell(PromptRead(key, role, read))

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
            if not self._has_room(running.request, written):
                return
            state.active[slot] = 1

    def _has_room(self, request: SlotRequest, output: int) -> bool:
        """Whether pages for its output and one longest step are free, or it would run alone.

        Nothing is admitted while a running request lacks pages: it would take the pages just freed.
        """
        active = self._slots.where(active=True)
        if not active and not self._slots.any_away:
            return True
        lacking = self._state.lacks_pages.tolist()
        if any(lacking[slot] for _, slot in active):
            return False
        return pages_for_longest_step(request, output, self._loop) <= int(self._state.num_free)
