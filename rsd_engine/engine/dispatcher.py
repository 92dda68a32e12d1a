"""Hands requests to the core, and its events to the callers that wait for them.

Callers may wait in several threads or asyncio tasks. Whoever needs an event runs the core, under
one lock, and queues the events of the others for them. Callers that add or abort go first: a launch
that is running for another caller ends after its tick. The core works in a thread of its own, so
Ctrl-C reaches the caller between two launches and never breaks into one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from rsd_engine.core.events import Event, PromptRead, RequestDone
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.solution_rewards import SolutionRewards
from rsd_engine.engine.build import EngineParts
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.results import RequestBuilder, SampleBuilder
from rsd_engine.outputs import FinishedEvent, Metrics, RequestOutput, StepEvent
from rsd_engine.sampling_params import SamplingParams

StreamEvent = StepEvent | FinishedEvent


@dataclass(frozen=True)
class CheckedRequest:
    """A request that has passed every check."""

    prompt: ResolvedPrompt
    params: SamplingParams
    seed: int
    slots: list[SlotRequest]  # one per sample


class Dispatcher:
    """The requests of one engine, by their ids."""

    def __init__(self, parts: EngineParts) -> None:
        self.metrics = Metrics()  # of finished requests; `seconds` is time in launches
        self._parts = parts
        self._core = parts.core
        self._lock = threading.RLock()
        self._door = threading.Lock()  # taken before the lock; its holder gets the lock next
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rsd-core")
        self._in_core: Future[list[Event]] | None = None  # the call that the worker is running
        self._samples: dict[int, tuple[RequestBuilder, SampleBuilder]] = {}
        self._keys: dict[str, list[int]] = {}
        self._events: dict[str, deque[StreamEvent]] = {}
        self._num_keys = 0
        self._num_requests = 0

    def add_all(self, requests: list[CheckedRequest]) -> list[str]:
        """Queues requests, all of them before one can run; returns their ids."""
        with self._ahead():
            return [self._add(request) for request in requests]

    def pump(self, request_id: str) -> None:
        """Runs the core once, unless this request was dropped or already has an event waiting."""
        with self._door:
            self._lock.acquire()
        try:
            self._wait_for_core()
            if request_id not in self._events or self._events[request_id]:
                return
            self._run_core()
        finally:
            self._lock.release()

    def take(self, request_id: str) -> list[StreamEvent]:
        """Takes the events that wait for this request, in order; the last one ends its queue."""
        with self._lock:
            queue = self._events.get(request_id)
            if queue is None:
                return []
            events = list(queue)
            queue.clear()
            if events and isinstance(events[-1], FinishedEvent):
                del self._events[request_id]
            return events

    def outputs(self, request_ids: list[str]) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (position in `request_ids`, result) as requests finish; drops the rest if left."""
        waiting = {request_id: index for index, request_id in enumerate(request_ids)}
        try:
            while waiting:
                for request_id in list(waiting):
                    for event in self.take(request_id):
                        if isinstance(event, FinishedEvent):
                            yield waiting.pop(request_id), event.output
                if waiting:
                    self.pump(next(iter(waiting)))
        finally:
            for request_id in waiting:
                self.drop(request_id)

    def abort(self, request_id: str) -> None:
        """Ends a request at once; does nothing if it has finished or is unknown."""
        with self._ahead():
            for key in list(self._keys.get(request_id, ())):
                self._deliver(self._core.abort(key))

    def drop(self, request_id: str) -> None:
        """Aborts a request that nobody waits for any more, and discards its events."""
        with self._ahead():
            self.abort(request_id)
            self._events.pop(request_id, None)

    def read_solutions(self, work: SolutionRewards) -> None:
        """Reads all of them in the core's thread, some between each two launches.

        While there are too few free pages for one, the loop goes on and starts no request.
        """
        waits = False
        try:
            while not work.is_done:
                with self._ahead():
                    self._run_core(partial(self._core.run_between, work.read_some))
                    if waits != work.lacks_pages:
                        waits = work.lacks_pages
                        self._core.num_waiting += 1 if waits else -1
                if waits:
                    self._run_requests()
        finally:
            if waits:
                with self._ahead():
                    self._core.num_waiting -= 1

    def _run_requests(self) -> None:
        """Runs the core once, for whoever waits for its events."""
        with self._door:
            self._lock.acquire()
        try:
            self._wait_for_core()
            if self._core.has_work:
                self._run_core()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Aborts everything and ends the worker."""
        with self._ahead():
            try:
                for request_id in list(self._keys):
                    self.abort(request_id)
                self._core.close()
            finally:
                self._worker.shutdown()

    @contextmanager
    def _ahead(self) -> Iterator[None]:
        """Takes the lock ahead of callers that would only run the core once more."""
        if not self._lock.acquire(blocking=False):
            self._core.ask_to_return()
            with self._door:
                self._core.ask_to_return()  # the last holder of the door may have launched since
                self._lock.acquire()
        try:
            self._wait_for_core()
            yield
        finally:
            self._lock.release()

    def _run_core(self, run: Callable[[], list[Event]] | None = None) -> None:
        """Runs the core once in the worker, and delivers its events.

        The future is stored before it is submitted: an interrupt leaves no unknown call behind.
        """
        call: Future[list[Event]] = Future()
        try:
            self._in_core = call
            self._worker.submit(self._call_core, call, run or self._next_events)
        except BaseException:
            if call.cancel():  # it has not begun, and will not
                self._in_core = None
            raise
        self._wait_for_core()

    def _wait_for_core(self) -> None:
        """Waits until the core is not running, and delivers its events.

        An interrupt ends the wait; the next caller waits again, so none finds the core running.
        """
        if self._in_core is None:
            return
        try:
            events = self._in_core.result()
        except KeyboardInterrupt:
            self._core.ask_to_return()
            raise
        except BaseException:
            self._in_core = None
            raise
        self._in_core = None
        self._deliver(events)

    def _call_core(self, call: Future[list[Event]], run: Callable[[], list[Event]]) -> None:
        """In the worker: the events of the core, or its error, become the result of `call`."""
        if not call.set_running_or_notify_cancel():
            return
        try:
            call.set_result(run())
        except BaseException as error:
            call.set_exception(error)

    def _next_events(self) -> list[Event]:
        started = time.perf_counter()
        events = self._core.next_events()
        seconds = self.metrics.seconds + time.perf_counter() - started
        self.metrics = replace(self.metrics, seconds=seconds)
        return events

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RequestDone):
                self._finish(event)
                continue
            _, sample = self._samples[event.key]
            if isinstance(event, PromptRead):
                sample.prompt_read = event
            else:
                self._publish(sample.request_id, sample.push(event))

    def _add(self, request: CheckedRequest) -> str:
        request_id = str(self._num_requests)
        self._num_requests += 1
        models, params = self._parts.models, request.params
        samples = [
            SampleBuilder(
                request_id, i, params, models.main.vocabulary, models.eos_ids,
                prm_limits=slot.prm_limits,
            )
            for i, slot in enumerate(request.slots)
        ]  # fmt: skip
        builder = RequestBuilder(request_id, request.prompt, request.seed, samples)
        keys = list(range(self._num_keys, self._num_keys + params.n))
        self._num_keys += params.n
        for key, sample, slot in zip(keys, samples, request.slots, strict=True):
            self._samples[key] = (builder, sample)
            self._core.add(key, slot)
        self._keys[request_id] = keys
        self._events[request_id] = deque()
        return request_id

    def _finish(self, done: RequestDone) -> None:
        builder, sample = self._samples.pop(done.key)
        self._publish(sample.request_id, sample.close(done))
        if not builder.finished:
            return
        output = builder.output(self._parts.models.num_parameters)
        del self._keys[builder.request_id]
        self.metrics = self.metrics + replace(output.metrics, seconds=0.0)
        self._publish(builder.request_id, FinishedEvent(builder.request_id, output))

    def _publish(self, request_id: str, event: StreamEvent | None) -> None:
        if event is not None and request_id in self._events:
            self._events[request_id].append(event)
